"""Render HTML pages: templates make HTML of a report's data, with one style sheet and one script."""
