"""Made-up records as fixtures."""

from record_fixtures import *  # noqa: F403
