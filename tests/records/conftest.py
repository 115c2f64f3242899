"""Made-up records as fixtures."""

from made_records import *  # noqa: F403
