"""The parts of the page: functions from what was read to sections of blocks, or None where there is nothing to show."""
