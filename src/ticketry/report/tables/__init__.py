"""Compute the numbers that a report shows: means and spreads, costs, measured times, and flat rows of all data."""
