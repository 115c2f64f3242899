"""What commands show: progress while they work, and tables and lines of what was found."""
