"""Which layers are chosen for the sparse kernels, what that is estimated to cost, and how kernels are tuned."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from group_wise import grouped
from ticketry_engine.capture import capture
from ticketry_engine.gpu import plan
from ticketry_engine.gpu.plan import (
    RATES,
    Config,
    LayerChoice,
    LayerWork,
    candidate_configs,
    choose_config,
    choose_kernels,
    find_fastest,
    is_two_four,
    layer_facts,
    runs_on_batch_last_inputs,
    supports_two_four,
)
from ticketry_engine.gpu.tables import UNIT

BF16 = RATES[torch.bfloat16]
CPU = torch.device("cpu")


def work(rows=512, columns=4608, pixels=64 * 196, run=64, group=64, density=0.26, **changes):
    """A convolution of a ResNet's middle."""
    groups = [(group, round(columns * density))] * (rows // group)
    made = LayerWork(pixels, run, rows, columns, groups, pixels * columns // 9, pixels * rows, False, True)
    return replace(made, **changes)


def choices(model, batch=64, dtype=torch.bfloat16, shape=(256, 14, 14), **options):
    graph = capture(model.eval(), None, torch.randn(2, *shape))
    made = choose_kernels(graph, batch, layer_facts(graph), dtype, CPU, **options)
    return [made[node.output] for node in graph.nodes if node.output in made]


def conv(inputs=256, outputs=256, rows=64, density=0.26, kernel=3):
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    with torch.no_grad():
        layer.weight.copy_(grouped(outputs, inputs * kernel**2, rows, density).view_as(layer.weight))
    return layer


# -- the estimate ------------------------------------------------------------------------------------------------------


def test_time_falls_with_density():
    times = [plan.group_kernel_seconds(work(density=density), 64, BF16) for density in (1, 0.5, 0.26, 0.1, 0.02)]
    assert times == sorted(times, reverse=True)
    assert all(time > BF16.launch for time in times)


def test_dense_time_is_the_roofline():
    made = work(act=False)
    flops = 2 * made.pixels * made.rows * made.columns
    assert plan.dense_seconds(made, BF16) == pytest.approx(BF16.launch + flops / BF16.conv)
    linear = plan.dense_seconds(replace(made, linear=True), BF16)
    assert linear == pytest.approx(BF16.launch + flops / BF16.linear)
    thin = work(columns=16, act=False)
    moved = 2 * (thin.inputs + thin.outputs + thin.rows * thin.columns)
    assert plan.dense_seconds(thin, BF16) == pytest.approx(BF16.launch + moved / BF16.bandwidth)


@pytest.mark.parametrize(("group", "tile"), [(16, 16), (32, 32), (64, 64), (128, 128), (256, 128)])
def test_tiles_are_as_large_as_groups(group, tile):
    assert plan.best_tile(work(group=group), BF16) == tile


def test_groups_of_48_rows_do_not_pay_for_64():
    assert plan.best_tile(work(rows=480, group=48), BF16) in (16, 32, 64)
    padded = plan.group_kernel_seconds(work(rows=480, group=48), 128, BF16)
    assert plan.group_kernel_seconds(work(rows=480, group=48), 64, BF16) < padded
    assert work(run=9, pixels=9 * 10).padded_pixels == 16 * 10
    assert [plan.retained_share_in_tiles(work(**one)) for one in ({"group": 16}, {"group": 1}, {"groups": []})] == [
        1,
        1 / 16,
        1,
    ]


# -- choices -----------------------------------------------------------------------------------------------------------


def test_groups_are_sparse_and_dense_layers_dense():
    for density, kernel in [(0.26, "group"), (1.0, "dense"), (0.98, "dense")]:
        found = choices(nn.Sequential(*[conv(density=density) for _ in range(4)]))
        assert [choice.kernel for choice in found] == [kernel] * 4, found
        assert all(choice.why for choice in found)


def test_layers_that_gain_nothing_or_cannot_stay_dense():
    for layer, batch, why in ((conv(rows=1, density=0.1), 64, "few rows share"), (conv(), 1, "too few")):
        (choice,) = choices(layer, batch=batch)
        assert choice.kernel == "dense"
        assert why in choice.why
    (choice,) = choices(conv(rows=1), batch=1, force=True)
    assert choice.kernel == "group"
    layer = nn.Conv2d(16, 64, 3, dilation=100, padding=100)
    for options in ({}, {"force": True}):
        (choice,) = choices(layer, shape=(16, 4, 4), **options)
        assert choice.kernel == "dense"
        assert "reaches 200 pixels" in choice.why


def test_changes_of_layout_are_part_of_the_price():
    """A layer that saves less than it costs to bring its input and its output into another layout stays dense."""
    model = nn.Sequential(conv(density=1), conv(), conv(density=1))
    assert [choice.kernel for choice in choices(model, rates=replace(BF16, turned=1e18))] == ["dense", "group", "dense"]
    found = choices(model, rates=replace(BF16, turned=1e9))
    assert [choice.kernel for choice in found] == ["dense"] * 3
    assert "layout" in found[1].why
    assert "estimated" in found[1].why


def test_a_plan_is_never_estimated_dearer_than_dense():
    convolutions = nn.Sequential(conv(), nn.ReLU(), conv(density=0.9), nn.MaxPool2d(2), conv(rows=16), conv(density=1))
    up, down = nn.Linear(384, 1536), nn.Linear(1536, 384)
    with torch.no_grad():
        for layer in (up, down):
            layer.weight.copy_(grouped(len(layer.weight), layer.weight.shape[1], 32, 0.26))
    networks = [(convolutions, (256, 14, 14)), (nn.Sequential(nn.LayerNorm(384), up, nn.GELU(), down), (128, 384))]
    for model, shape in networks:
        graph = capture(model.eval(), None, torch.randn(2, *shape))
        facts = layer_facts(graph)
        for batch in (4, 16, 64):
            found = choose_kernels(graph, batch, facts, torch.bfloat16, CPU)
            works = plan.work_by_layer(graph, batch, facts)
            dense = {name: replace(choice, kernel="dense") for name, choice in found.items()}
            planned = plan.estimate_seconds(graph, batch, works, found, BF16)
            assert planned <= plan.estimate_seconds(graph, batch, works, dense, BF16)


def test_what_follows_in_the_inner_layout():
    class Model(nn.Module):
        def forward(self, x):
            y = torch.cat([x, x.relu()], 1) + 1
            return (nn.functional.max_pool2d(y.tanh(), 2)).softmax(1)

    graph = capture(Model().eval(), None, torch.randn(2, 3, 4, 4))
    found = {node.op: runs_on_batch_last_inputs(graph, node) for node in graph.nodes}
    assert found["concat"]
    assert found["act"]
    assert found["max_pool2d"]
    assert not found["softmax"]


def test_norms_write_the_layout_that_is_read():
    """Inner for a layer in the group kernel, also through what follows; outer for everything in torch."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = conv(16, 64), conv(64, 64), conv(64, 64)
            self.norm, self.linear = nn.LayerNorm(64), nn.Linear(64, 64)

        def forward(self, x):
            x = self.one(x)
            x = x + self.two(nn.functional.max_pool2d(x, 3, 1, 1))
            x = self.three(x).softmax(1)
            return self.linear(self.norm(x.flatten(2).transpose(1, 2)))

    graph = capture(Model().eval(), None, torch.randn(2, 16, 6, 6))
    made = choose_kernels(graph, 8, layer_facts(graph), torch.bfloat16, CPU, force=True)
    names = {node.weights.get("weight", node.op): node for node in graph.nodes}
    wanted = plan.find_batch_last_values(graph, made)
    assert names["one.weight"].output in wanted
    assert names["max_pool2d"].output in wanted
    assert names["two.weight"].output in wanted
    assert names["three.weight"].output not in wanted  # torch's softmax reads it
    assert names["norm.weight"].output in wanted
    assert names["linear.weight"].output not in wanted
    dense = {name: replace(choice, kernel="dense") for name, choice in made.items()}
    assert plan.find_batch_last_values(graph, dense) == set()


def test_features_at_the_end_of_images_stay_outer():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 64), nn.Linear(64, 16)

        def forward(self, x):
            return self.down(self.up(self.norm(x)))

    graph = capture(Model().eval(), None, torch.randn(2, 3, 4, 16))
    made = choose_kernels(graph, 8, layer_facts(graph), torch.bfloat16, CPU, force=True)
    assert {choice.kernel for choice in made.values()} == {"group"}
    assert plan.find_batch_last_values(graph, made) == set()


def test_what_torch_reads_is_turned():
    """A group layer's result lies inner: before torch reads it, and what torch made for it, cost a turn each."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = conv(64, 64), conv(64, 64)

        def forward(self, x):
            return self.two(self.one(x).softmax(1))

    graph = capture(Model().eval(), None, torch.randn(2, 64, 6, 6))
    facts = layer_facts(graph)
    works = plan.work_by_layer(graph, 8, facts)
    group = dict.fromkeys(works, LayerChoice("group", "", 64))
    numbers = 8 * 64 * 6 * 6
    alone = sum(plan.group_kernel_seconds(one, 64, BF16) for one in works.values())
    # The input, into the softmax, out of it, and the result.
    assert plan.estimate_seconds(graph, 8, works, group, BF16) == pytest.approx(
        alone + 4 * plan.layout_change_seconds(numbers, BF16)
    )


def test_features_at_the_end_of_images_are_turned_at_once():
    graph = capture(nn.Linear(64, 64).eval(), None, torch.randn(2, 3, 4, 64))
    facts = layer_facts(graph)
    [node] = [node for node in graph.nodes if node.op == "linear"]
    work = plan.work_by_layer(graph, 8, facts)[node.output]
    found = plan.estimate_seconds(graph, 8, {node.output: work}, {node.output: LayerChoice("group", "", 64)}, BF16)
    turn = plan.layout_change_seconds(8 * 3 * 4 * 64, BF16)
    assert found == pytest.approx(plan.group_kernel_seconds(work, 64, BF16) + 2 * turn)


# -- 2:4 ---------------------------------------------------------------------------------------------------------------


def test_two_in_four():
    weight = torch.ones(32, 64)
    assert not is_two_four(weight)
    weight.view(32, 16, 4)[:, :, 1::2] = 0
    assert is_two_four(weight)
    weight[3, 4:8] = torch.tensor([1.0, 1, 0, 1])
    assert not is_two_four(weight)
    for shape in ((31, 64), (32, 60), (32, 64, 1, 1)):
        assert not is_two_four(torch.zeros(shape)), "torch does not take it"
    assert not supports_two_four(CPU, torch.bfloat16)


# -- the choice among a few ways to run a kernel -----------------------------------------------------------------------

FIRST, SECOND, THIRD = Config(128, 64, 4, 5), Config(64, 64, 4, 5), Config(32, 64, 4, 5)


def test_few_candidates_that_fit_the_tables_and_little_work_is_spread_over_more_programs():
    for tile, outputs in itertools.product([16, 32, 64, 128], [1, 1000, 1_000_000]):
        found = candidate_configs(tile, outputs, 8)
        assert 1 <= len(found) == len(set(found)) <= 4
        assert all(UNIT % config.columns == 0 for config in found)
    assert candidate_configs(64, 500, 4)[0].pixels < candidate_configs(64, 500_000, 4)[0].pixels


def test_the_median_decides():
    clock = iter([1.0, 2.0] * 3 + [9.0, 2.0] * 4)
    assert find_fastest([FIRST, SECOND], lambda config: None, lambda call: next(clock)) == SECOND


def test_what_cannot_run_is_left_out():
    ran = []

    def run(config):
        if config == FIRST:
            raise RuntimeError("out of resource: shared memory")
        ran.append(config)

    def seconds(call):
        call()
        return float(ran[-1] is SECOND)

    assert find_fastest([FIRST, SECOND, THIRD], run, seconds) == THIRD
    with pytest.raises(RuntimeError, match="shared memory"):
        find_fastest([FIRST], run, seconds)


def test_on_a_cpu_nothing_is_timed():
    def run(config):
        raise AssertionError

    assert choose_config("key", 64, 3, 1, torch.zeros(1), run).pixels == 16
