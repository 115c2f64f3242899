"""A lab on an empty store, and small tasks that train in a moment."""

from lab_fixtures import PointsTask, digits, equal_bits, half, lab, on_the_cpu, points, points_class, same  # noqa: F401
