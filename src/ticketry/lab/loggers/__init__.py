"""Report trainings to dashboards, such as Weights & Biases, through objects called loggers."""
