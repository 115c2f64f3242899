"""Terminal output of commands: progress while they work, then tables of results."""
