"""What is read from a run record, and what is refused with the place of the fault."""

from __future__ import annotations

import copy
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ticketry.errors import StoreError
from ticketry.records.run import read_run
from ticketry.report.html.page import render
from ticketry.report.subject import subject_of


def _replaced(record, path, value):
    """A deep copy with one value replaced, or removed where it is `...`."""
    record = copy.deepcopy(record)
    *parents, last = path
    node = record
    for key in parents:
        node = node[key]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return record


def test_reads_what_is_there(make_record):
    run = read_run(make_record(levels=2))
    assert (run.name, run.method) == ("iterative-fashion-mnist-3f2a91c0", "iterative")
    assert (run.task.prunable, run.task.parameters) == (266200, 266610)
    assert len(run.points) == 3 * (1 + 2 * 4)
    first = run.points[1]
    assert (first.replicate, first.level, first.role, first.density) == (0, 1, "ticket", 0.8)
    assert [layer.name for layer in first.layers] == ["fc1.weight", "fc2.weight", "fc3.weight"]


@pytest.mark.parametrize("key", ["settings", "recipe", "steps", "cost", "environment", "command", "config", "title"])
def test_what_is_not_essential_may_be_missing(make_record, key):
    assert read_run(_replaced(make_record(levels=1), [key], ...)).method == "iterative"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], 2, "format 2 is not the one"),
        (["format"], "1", "format is text, not a whole number"),
        (["kind"], "verify", "kind is not 'search'"),
        (["task"], ..., "task is missing, not an object"),
        (["task", "metric", "name"], 5, r"task\.metric\.name is a number, not text"),
        (["task", "metric", "higher_is_better"], "yes", "higher_is_better is text, not true or false"),
        (["task", "metric", "summary"], "median", "summary is 'median', neither mean nor iqm"),
        (["task", "prunable"], 10**9, "prunable is more than all parameters"),
        (["points"], {}, "points is an object, not a list"),
        (["points", 1], [], r"points\[1\] is a list, not an object"),
        (["points", 1, "level"], True, r"points\[1\]\.level is a truth value, not a whole number"),
        (["points", 1, "level"], -1, r"points\[1\]\.level is -1, less than 0"),
        (["points", 1, "role"], "<b>", r"points\[1\]\.role is '<b>', not a name"),
        (["points", 1, "density"], 1.5, r"points\[1\]\.density is 1\.5, which does not lie in"),
        (["points", 1, "density"], 0, "does not lie in"),
        (["points", 1, "density"], math.nan, "no finite number"),
        (["points", 1, "test", "accuracy"], ..., r"points\[1\]\.test\.accuracy is missing, not a number"),
        (["points", 1, "test", "accuracy"], math.inf, r"points\[1\]\.test\.accuracy is no finite number"),
        (["points", 1, "test", "accuracy"], 10**400, "no finite number"),
        (["points", 1, "validation"], None, r"points\[1\]\.validation is missing"),
        (["points", 1, "layers", 0, "kept"], 10**9, r"layers\[0\]\.kept is more than the layer's total"),
        (["points", 1, "role"], "dense", None),
        (["points", 2, "role"], "ticket", r"points\[2\] is the second ticket of replicate 0 at level 1"),
    ],
)
def test_refuses_with_the_place(make_record, path, value, message):
    record = _replaced(make_record(levels=1), path, value)
    if message is None:
        assert read_run(record)
        return
    with pytest.raises(StoreError, match=message) as caught:
        read_run(record)
    assert str(caught.value).startswith("run record: ")


@pytest.mark.parametrize("record", [None, [], "text", 3])
def test_refuses_what_is_no_record_at_all(record):
    with pytest.raises(StoreError, match="the whole"):
        read_run(record)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def _paths(node, path=()):
    """The paths of everything in a record."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from _paths(child, (*path, key))


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_damage_gives_a_page_or_is_refused(make_record, data):
    record = make_record(levels=1, replicates=1, controls=())
    path = data.draw(st.sampled_from(sorted(_paths(record), key=str)))
    record = _replaced(record, path, data.draw(_JSON))
    try:
        subject = subject_of(record)
    except StoreError:
        return
    render(subject).encode("utf-8")
