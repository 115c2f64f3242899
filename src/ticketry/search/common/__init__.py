"""Shared by several searches: settings, steps, budgets, and the class of methods."""
