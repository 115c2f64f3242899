from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import pickle
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from ticketry.core.mask import FORMAT, Mask, from_bytes, pack_bits, shuffled, to_bytes, unpack_bits
from ticketry.core.scope import scope
from ticketry.errors import MaskError, UsageError
from ticketry_engine.support.seeds import generator

SHAPES = {"a.weight": (3, 5), "b.weight": (2, 2, 3), "b.bias": (7,), "scale": ()}


@st.composite
def masks(draw, shapes=SHAPES):
    return Mask(
        {
            name: torch.tensor(draw(st.lists(st.booleans(), min_size=prod(shape), max_size=prod(shape)))).reshape(shape)
            for name, shape in shapes.items()
        }
    )


def bits(mask: Mask) -> list[bool]:
    return [bit for tensor in mask.values() for bit in tensor.flatten().tolist()]


@given(masks(), masks())
def test_algebra(a, b):
    assert bits(a & b) == [x and y for x, y in zip(bits(a), bits(b), strict=True)]
    assert bits(a | b) == [x or y for x, y in zip(bits(a), bits(b), strict=True)]
    assert bits(a ^ b) == [x != y for x, y in zip(bits(a), bits(b), strict=True)]
    assert bits(~a) == [not x for x in bits(a)]


@given(masks(), masks())
def test_order_equality_and_digest(a, b):
    assert (a <= b) == all(y or not x for x, y in zip(bits(a), bits(b), strict=True))
    assert (a == b) == (bits(a) == bits(b)) == (a.digest == b.digest)
    assert hash(a) == hash(Mask(dict(a)))


@given(masks(), masks())
def test_counts_and_overlap(a, b):
    kept = sum(bits(a))
    assert (a.kept, a.total) == (kept, 15 + 12 + 7 + 1)
    assert a.density == kept / 35
    assert a.sparsity == pytest.approx((35 - kept) / 35)
    assert sum(row.kept for row in a.table()) == kept
    assert [(row.name, row.shape) for row in a.table()] == list(SHAPES.items())
    both = sum(x and y for x, y in zip(bits(a), bits(b), strict=True))
    assert a.overlap(b) == (both / kept if kept else 0.0)


def test_equality_and_digest_do_not_depend_on_the_order_of_names():
    one = Mask({"a": torch.ones(2), "b": torch.zeros(3)})
    other = Mask({"b": torch.zeros(3), "a": torch.ones(2)})
    assert one == other
    assert one.digest == other.digest
    assert len({one, other}) == 1


def test_digest_depends_on_names_shapes_and_bits():
    digests = {
        Mask({"a": torch.tensor([1, 0, 1, 0])}).digest,
        Mask({"b": torch.tensor([1, 0, 1, 0])}).digest,
        Mask({"a": torch.tensor([[1, 0], [1, 0]])}).digest,
        Mask({"a": torch.tensor([1, 0, 1, 1])}).digest,
        Mask({"a": torch.tensor([1, 0, 1, 0, 0])}).digest,
    }
    assert len(digests) == 5


def test_a_mask_is_not_equal_to_other_things_or_other_shapes():
    mask = Mask({"a": torch.ones(4)})
    assert mask != {"a": torch.ones(4, dtype=torch.bool)}
    assert mask != Mask({"a": torch.ones(2, 2)})
    assert mask.__eq__(3) is NotImplemented


def test_names_are_normalised():
    mask = Mask({"module._orig_mod.fc.weight": torch.ones(2)})
    assert list(mask) == ["fc.weight"]
    with pytest.raises(MaskError, match=r"two tensors of the mask are called 'fc\.weight'"):
        Mask({"fc.weight": torch.ones(2), "module.fc.weight": torch.ones(2)})


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([0.0, 0.5]),
        torch.tensor([0, 2]),
        torch.tensor([-1, 1]),
        torch.tensor([1.0, float("nan")]),
        torch.tensor([1.0, float("inf")]),
        torch.tensor([1.0000001, 0.0], dtype=torch.float64),
    ],
)
def test_values_other_than_0_and_1_are_refused(tensor):
    with pytest.raises(MaskError, match="mask 'w' holds values other than 0 and 1"):
        Mask({"w": tensor})


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64])
def test_any_type_of_0_and_1_will_do(dtype):
    mask = Mask({"w": torch.tensor([1, 0, 1]).to(dtype)})
    assert mask["w"].dtype == torch.bool
    assert mask["w"].tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "at least one tensor"),
        ({"w": torch.ones(0, 3)}, "one element"),
        ({"w": [1, 0]}, "a tensor is needed, not list"),
        ([torch.ones(2)], "mapping name -> tensor, not of a list"),
    ],
)
def test_what_is_no_mask_is_refused(tensors, message):
    with pytest.raises(MaskError, match=message):
        Mask(tensors)


def test_masks_of_different_tensors_do_not_combine():
    one = Mask({"a": torch.ones(2)})
    for other in (
        Mask({"b": torch.ones(2)}),
        Mask({"a": torch.ones(3)}),
        Mask({"a": torch.ones(2), "b": torch.ones(1)}),
    ):
        for operation in (lambda x, y: x & y, lambda x, y: x | y, lambda x, y: x ^ y, lambda x, y: x <= y):
            with pytest.raises(MaskError, match="cannot be combined"):
                operation(one, other)
    with pytest.raises(MaskError, match="they differ in 'b'"):
        Mask({"a": torch.ones(2), "b": torch.ones(1), "c": torch.ones(1)}) & Mask(
            {"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(1)}
        )
    with pytest.raises(TypeError, match="unsupported operand"):
        one & {"a": torch.ones(2)}


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
def test_a_mask_stays_as_it_is_when_its_tensors_are_written_to(dtype):
    given = torch.tensor([[1, 0], [0, 1]]).to(dtype)
    mask = Mask({"weight": given})
    given[0, 1] = 1
    assert (mask.kept, int(mask["weight"].sum())) == (2, 2)
    assert mask.digest == Mask({"weight": torch.eye(2)}).digest


def test_tensors_that_nobody_else_has_are_taken_as_they_are():
    own = torch.tensor([True, False])
    assert Mask({"weight": own}, copy=False)["weight"].data_ptr() == own.data_ptr()


def test_a_mask_survives_pickling_and_copying():
    mask = Mask({"a": torch.tensor([1, 0]), "b": torch.ones(2, 2)})
    assert pickle.loads(pickle.dumps(mask)) == mask
    assert copy.deepcopy(mask) == mask


def test_the_table_is_values_and_prints_as_lines():
    kept = {"fc.weight": torch.eye(50), "the head\n.weight": torch.tensor([True, False, True, True])}
    table = Mask(kept).table()
    assert [(row.name, row.kept, row.total) for row in table] == [("fc.weight", 50, 2500), ("the head\n.weight", 3, 4)]
    assert table == tuple(table) == pickle.loads(pickle.dumps(table))
    _, together, *lines = str(table).splitlines()
    assert together.split() == ["all", "layers", "53", "2,504", "0.0212"]
    assert [line.split()[-4:] for line in lines] == [["50x50", "50", "2,500", "0.0200"], ["4", "3", "4", "0.7500"]]


def test_a_tensor_without_elements_has_a_row_in_the_table():
    rows = Mask({"a": torch.ones(2), "empty": torch.ones(0, 3)}).table()
    assert [(row.name, row.total, row.density) for row in rows] == [("a", 2, 1.0), ("empty", 0, 0.0)]


@pytest.mark.parametrize("name", ["resnet", "lstm", "transformer"])
def test_apply_zeroes_removed_weights_and_nothing_else(build, name):
    model = build(name).model
    found = scope(model)
    draw = torch.Generator().manual_seed(3)
    mask = Mask({key: torch.rand(shape, generator=draw) < 0.5 for key, shape in found.shapes.items()})
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    assert mask.apply_(model) is model
    tied = {"decoder.weight": "encoder.weight"}
    for key, tensor in model.state_dict().items():
        kept = mask.get(tied.get(key, key), torch.ones_like(tensor, dtype=torch.bool))
        assert torch.equal(tensor, torch.where(kept, before[key], torch.zeros_like(tensor)))


def test_apply_clears_what_is_not_a_number():
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[float("nan"), 1.0]]))
    Mask({"weight": torch.tensor([[0, 1]])}).apply_(model)
    assert model.weight.tolist() == [[0.0, 1.0]]


def test_a_mask_of_another_model_is_refused():
    with pytest.raises(MaskError, match=r"the mask does not fit: Linear has no parameter 'fc\.weight'"):
        Mask({"fc.weight": torch.ones(2, 2)}).apply_(nn.Linear(2, 2))
    with pytest.raises(MaskError, match=r"its parameters are weight, bias$"):  # all of them
        Mask({"fc.weight": torch.ones(2, 2)}).apply_(nn.Linear(2, 2))
    with pytest.raises(MaskError, match=r"its parameters are 0\.weight, 0\.bias, 1\.weight, 1\.bias, …$"):
        Mask({"fc.weight": torch.ones(2, 2)}).apply_(nn.Sequential(*(nn.Linear(2, 2) for _ in range(3))))
    with pytest.raises(MaskError, match="the mask does not fit: 'weight' has the shape"):
        Mask({"weight": torch.ones(2, 3)}).apply_(nn.Linear(2, 2))
    with pytest.raises(
        UsageError, match=r"model= is a torch\.nn\.Module, not a OrderedDict: make the model and load it"
    ):
        Mask({"weight": torch.ones(2, 2)}).apply_(nn.Linear(2, 2).state_dict())


def test_ones_keeps_a_whole_scope(build):
    found = scope(build("resnet").model)
    mask = Mask.ones(found)
    assert (mask.density, mask.total, mask.shapes) == (1.0, found.total, dict(found.shapes))
    assert Mask.ones({"a": (2, 3)}).kept == 6


def test_a_mask_moves_to_a_device_as_a_whole():
    mask = Mask({"a": torch.eye(2), "b": torch.zeros(2)})
    moved = mask.to("meta")
    assert moved.shapes == mask.shapes
    assert {tensor.device.type for tensor in moved.values()} == {"meta"}
    assert mask.to("cpu") == mask


def test_shuffled_is_the_permutation_of_its_own_generator():
    mask = Mask({"a": torch.eye(4), "b": torch.eye(4)})
    for index, tensor in enumerate(shuffled(mask, 3).values()):
        order = torch.randperm(16, generator=generator(3, "shuffled", index))
        assert torch.equal(tensor.flatten(), torch.eye(4).bool().flatten()[order])


shapes = st.dictionaries(
    st.text('abcé."\\{/', min_size=1, max_size=8), st.lists(st.integers(0, 5), max_size=4).map(tuple), min_size=1
).filter(lambda found: sum(prod(shape) for shape in found.values()) > 0)


@st.composite
def masks_of_any_shapes(draw):
    seed = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    return Mask({name: torch.rand(shape, generator=seed) < 0.5 for name, shape in draw(shapes).items()})


@given(masks_of_any_shapes())
def test_what_is_packed_is_unpacked(mask):
    assert unpack_bits(*pack_bits(mask)) == mask
    again = from_bytes(to_bytes(mask))
    assert again == mask
    assert list(again) == list(mask)
    assert again.digest == mask.digest


@given(masks_of_any_shapes())
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
        "3",
        '{"a":3}',
        '{"a":["3"]}',
        '{"a":[3.0]}',
        '{"a":[true,3]}',
        '{"a":[-3,-1]}',
        '{"a":[1e999]}',
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
