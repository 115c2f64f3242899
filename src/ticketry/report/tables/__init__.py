"""The numbers that a report shows: means and spreads, costs, measured times, and all of them as flat rows."""
