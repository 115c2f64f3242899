"""Print the progress of commands while they work, and tables of their results, on a terminal."""
