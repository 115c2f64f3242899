"""Code that several search methods share: settings, steps, budgets, and the class of methods."""
