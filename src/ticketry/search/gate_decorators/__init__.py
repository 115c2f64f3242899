"""Gate Decorators: the search, the tick in which gates on norms are trained and scored, and the masks made of it."""
