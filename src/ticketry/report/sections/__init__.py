"""The parts of the page, a module each: a function from results to an element, or None where there is nothing."""
