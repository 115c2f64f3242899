"""Helpers of both packages: files, process-wide state, seeds, optimiser hooks, masks as groups of rows."""
