"""A lab on an empty store, small tasks that train in a moment, and pages without their figures."""

from experiments.conftest import no_figures  # noqa: F401
from lab_fixtures import PointsTask, digits, equal_bits, half, lab, on_the_cpu, points, points_class, same  # noqa: F401
