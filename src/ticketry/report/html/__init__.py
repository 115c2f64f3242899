"""The page: sections as data, templates that make HTML of them, one style sheet and one script."""
