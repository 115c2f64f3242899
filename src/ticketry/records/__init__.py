"""Result records: the JSON files of runs, verifications, stability analyses, timings, structures and campaigns.

Each record is a class with the fields of its JSON file; results are written and read with the same classes. Reading
checks every value. An invalid file raises an error that names the field and what is wrong with it.
"""
