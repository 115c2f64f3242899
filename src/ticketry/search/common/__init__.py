"""What several searches share: settings and steps, budgets, what a method is."""
