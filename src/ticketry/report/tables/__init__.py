"""Compute the numbers that a report shows: means and spreads, costs, measured times, and rows for CSV files."""
