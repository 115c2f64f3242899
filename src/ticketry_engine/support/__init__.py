"""Provides helpers for both packages: files, process-wide state, seeds, optimiser hooks, groups of rows."""
