"""What a store has, as its user looks after it: its records, and its runs as a whole."""
