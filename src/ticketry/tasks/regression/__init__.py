"""Regression: numbers predicted from rows of numbers. `facts` tells what tables there are, and needs no torch."""
