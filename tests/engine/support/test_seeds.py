from __future__ import annotations

import hashlib

import torch
from hypothesis import given
from hypothesis import strategies as st

from ticketry_engine.support.seeds import generator, mix_seeds

parts = st.lists(st.one_of(st.integers(), st.text("ab1")), max_size=4)


@given(parts, parts)
def test_other_parts_give_other_seeds(one, other):
    assert (mix_seeds(*one) == mix_seeds(*other)) == (one == other)


def test_seeds_do_not_change_between_versions():
    """Stored results depend on these numbers."""
    text = b"int:0\x1fstr:order\x1fint:-3"
    assert mix_seeds(0, "order", -3) == int(hashlib.sha256(text).hexdigest()[:16], 16) // 2
    assert 0 <= mix_seeds("x") < 2**63


def test_generators_are_their_own():
    state = torch.get_rng_state()
    first = torch.rand(4, generator=generator(1, "a"))
    assert torch.equal(first, torch.rand(4, generator=generator(1, "a")))
    assert not torch.equal(first, torch.rand(4, generator=generator(1, "b")))
    assert torch.equal(state, torch.get_rng_state())
