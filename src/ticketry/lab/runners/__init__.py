"""Runners: they train segments in this process, in local processes, or on a cluster."""
