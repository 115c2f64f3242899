"""How seeds are judged: the tests, the plan, the answers and their words."""
