"""Loggers report trainings to dashboards; there is one file for each library."""
