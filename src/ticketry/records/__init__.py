"""What runs, verifications, stability analyses, timings and structures tell: one schema, to write and to read.

Each record is a class, whose fields are those of the JSON file. A record is data: whatever a file holds is read into
these classes or refused, with the place of what is wrong.
"""
