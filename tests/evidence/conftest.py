"""Pages without their figures, and a lab for all tests of a file, as in tests of experiments."""

from experiments.conftest import lab, no_figures

__all__ = ["lab", "no_figures"]
