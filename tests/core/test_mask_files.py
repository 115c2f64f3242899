from __future__ import annotations

import contextlib
import hashlib
import json
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from ticketry.core.mask import FORMAT, Mask, from_bytes, pack_bits, to_bytes, unpack_bits
from ticketry.errors import MaskError

shapes = st.dictionaries(
    st.text('abcé."\\{/', min_size=1, max_size=8), st.lists(st.integers(0, 5), max_size=4).map(tuple), min_size=1
).filter(lambda found: sum(prod(shape) for shape in found.values()) > 0)


@st.composite
def masks(draw):
    seed = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    return Mask({name: torch.rand(shape, generator=seed) < 0.5 for name, shape in draw(shapes).items()})


@given(masks())
def test_what_is_packed_is_unpacked(mask):
    assert unpack_bits(*pack_bits(mask)) == mask
    again = from_bytes(to_bytes(mask))
    assert again == mask
    assert list(again) == list(mask)
    assert again.digest == mask.digest


@given(masks())
def test_element_i_is_bit_i_from_the_lowest(mask):
    expected = [0] * ((mask.total + 7) // 8)
    for index, bit in enumerate(bit for tensor in mask.values() for bit in tensor.flatten().tolist()):
        expected[index // 8] += bit * 2 ** (index % 8)
    packed, layout = pack_bits(mask)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == expected
    assert {name: tuple(shape) for name, shape in json.loads(layout).items()} == mask.shapes


def resnet20() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"conv.weight": (16, 3, 3, 3)}
    inputs = 16
    for stage, outputs in enumerate((16, 32, 64)):
        for block in range(3):
            found[f"blocks.{3 * stage + block}.conv1.weight"] = (outputs, inputs, 3, 3)
            found[f"blocks.{3 * stage + block}.conv2.weight"] = (outputs, outputs, 3, 3)
            inputs = outputs
    return found | {"fc.weight": (10, 64)}


def test_a_mask_takes_hardly_more_than_one_bit_a_weight():
    draw = torch.Generator().manual_seed(0)
    mask = Mask({name: torch.rand(shape, generator=draw) < 0.2 for name, shape in resnet20().items()})
    assert mask.total == 268_336  # 432 + 13,824 + 50,688 + 202,752 + 640: the 0.27 million of He et al. (2016)
    assert 8 * len(to_bytes(mask)) <= 1.05 * mask.total


def test_bytes_are_those_written_before():
    data = to_bytes(Mask({"a": torch.eye(3), "b": torch.ones(2)}))
    assert hashlib.sha256(data).hexdigest() == "b1be5490139440be1cb42c56fa32bc4c0a6ecfa18f5a765ed24e3b3799b6d0e9"


def mask_file(bits: torch.Tensor, layout: str) -> bytes:
    return save({"bits": bits}, metadata={FORMAT: layout})


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


BYTE = torch.tensor([5], dtype=torch.uint8)
GOOD = mask_file(BYTE, '{"a":[3]}')


@pytest.mark.parametrize("length", range(0, len(GOOD), 7))
def test_a_truncated_file_is_refused(length):
    with pytest.raises(MaskError):
        from_bytes(GOOD[:length])


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_gives_a_mask(position, value):
    data = bytearray(GOOD)
    data[position] = value
    with contextlib.suppress(MaskError):
        assert from_bytes(bytes(data)).total > 0


@given(st.binary(max_size=64))
def test_noise_is_refused(data):
    with pytest.raises(MaskError):
        from_bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xff" * 32, id="header-of-2^64"),
        pytest.param((1 << 40).to_bytes(8, "little") + b"{}", id="header-of-2^40"),
        pytest.param(raw({}), id="no-tensors"),
        pytest.param(raw(b'{"a":' + b"[" * 100_000), id="nested"),
        pytest.param(save({"bits": BYTE}), id="no-metadata"),
        pytest.param(save({"bits": BYTE}, metadata={"ticketry.mask.2": "{}"}), id="other-format"),
        pytest.param(save({"bits": BYTE, "more": BYTE.clone()}, metadata={FORMAT: '{"a":[3]}'}), id="two-tensors"),
        pytest.param(save({"bats": BYTE}, metadata={FORMAT: '{"a":[3]}'}), id="wrong-tensor"),
        pytest.param(mask_file(torch.ones(1), '{"a":[3]}'), id="float-bits"),
        pytest.param(mask_file(BYTE.reshape(1, 1), '{"a":[3]}'), id="bits-of-two-dimensions"),
        pytest.param(
            raw({"bits": {"dtype": "U8", "shape": [1 << 50], "data_offsets": [0, 1 << 50]}}, b"x"), id="claims-2^50"
        ),
        pytest.param(raw({"bits": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"x"), id="odd-dtype"),
        pytest.param(
            raw({"bits": {"dtype": "U8", "shape": [0, 1 << 62, 1 << 62], "data_offsets": [0, 0]}}), id="stride-overflow"
        ),
    ],
)
def test_a_hostile_file_is_refused(data):
    with pytest.raises(MaskError):
        from_bytes(data)


@pytest.mark.parametrize(
    "layout",
    [
        "",
        "[",
        "[3]",
        "3",
        "null",
        '{"a":3}',
        '{"a":null}',
        '{"a":"3"}',
        '{"a":["3"]}',
        '{"a":[3.0]}',
        '{"a":[true,3]}',
        '{"a":[-3,-1]}',
        '{"a":[1e999]}',
        '{"a":[NaN]}',
        '{"a":[9]}',
        '{"a":[2]}' * 2,
        '{"a":[1099511627776,1099511627776]}',
        '{"a":[3],"b":[1099511627776,1099511627776,0]}',
        '{"a":[3],"b":[0,4611686018427387904]}',
        '{"a":[3],"b":[' + ",".join(["1"] * 100) + "]}",
        '{"a":[' + "9" * 5000 + "]}",
        '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"a":[2],"module.a":[1]}',
        "{}",
    ],
)
def test_a_hostile_layout_is_refused(layout):
    with pytest.raises(MaskError):
        from_bytes(mask_file(BYTE, layout))
    with pytest.raises(MaskError):
        unpack_bits(BYTE, layout)


def test_the_bits_after_the_last_element_do_not_matter():
    assert unpack_bits(torch.tensor([0b11111101], dtype=torch.uint8), '{"a":[3]}')["a"].tolist() == [True, False, True]
