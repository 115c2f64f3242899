"""Pages of runs without their figures, as in tests of experiments."""

from experiments.conftest import no_figures

__all__ = ["no_figures"]
