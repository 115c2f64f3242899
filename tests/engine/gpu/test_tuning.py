"""The choice among a few ways to run a kernel."""

from __future__ import annotations

import pytest
import torch

from ticketry_engine.gpu.tables import UNIT
from ticketry_engine.gpu.tuning import Config, choose, configs, fastest

FIRST, SECOND, THIRD = Config(128, 64, 4, 5), Config(64, 64, 4, 5), Config(32, 64, 4, 5)


@pytest.mark.parametrize("tile", [16, 32, 64, 128])
@pytest.mark.parametrize("outputs", [1, 1000, 1_000_000])
def test_few_candidates_that_fit_the_tables(tile, outputs):
    found = configs(tile, outputs, 8)
    assert 1 <= len(found) == len(set(found)) <= 4
    assert all(UNIT % config.columns == 0 for config in found)


def test_little_work_is_spread_over_more_programs():
    assert configs(64, 500, 4)[0].pixels < configs(64, 500_000, 4)[0].pixels


def test_the_median_decides():
    clock = iter([1.0, 2.0] * 3 + [9.0, 2.0] * 4)
    assert fastest([FIRST, SECOND], lambda config: None, lambda call: next(clock)) == SECOND


def test_what_cannot_run_is_left_out():
    ran = []

    def run(config):
        if config == FIRST:
            raise RuntimeError("out of resource: shared memory")
        ran.append(config)

    def seconds(call):
        call()
        return float(ran[-1] is SECOND)

    assert fastest([FIRST, SECOND, THIRD], run, seconds) == THIRD
    with pytest.raises(RuntimeError, match="shared memory"):
        fastest([FIRST], run, seconds)


def test_on_a_cpu_nothing_is_timed():
    def run(config):
        raise AssertionError

    assert choose("key", 64, 3, 1, torch.zeros(1), run).pixels == 16
