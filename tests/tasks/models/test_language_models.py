"""The language models: sizes, equations written out, pieces and wholes, smaller forms."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ticketry as tk
from samples import sample
from ticketry.errors import TaskError
from ticketry.tasks.models import language

NAMES = language.names()
CARRYING = [name for name in NAMES if language.is_recurrent(name)]
PAGE = (Path(__file__).parents[3] / "docs" / "domains.md").read_text(encoding="utf-8")


def small(name: str, width: float = 0.05, context: int = 16, seed: int = 0) -> language.LanguageModel:
    torch.manual_seed(seed)
    return language.build(f"{name}@{width}", vocabulary=40, context=context, dropout=0.3).double().eval()


def text(batch: int = 3, time: int = 14, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    # few different tokens, so that the pointer finds what it looks for
    return tuple(torch.randint(0, 9, (batch, time), generator=draw) for _ in range(2))


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_those_of_the_page(name: str) -> None:
    for words, count in re.findall(rf"^\| {name} \|.*?\| ([\d,]+) \| ([\d,]+) \|$", PAGE, re.MULTILINE):
        with torch.device("meta"):
            model = language.build(name, vocabulary=int(words.replace(",", "")), context=64, dropout=0.2)
        assert f"{sum(parameter.numel() for parameter in model.parameters()):,}" == count
        break
    else:
        raise AssertionError(f"docs/domains.md has no row of {name}")


@pytest.mark.parametrize("name", NAMES)
def test_costs_pieces_and_causality(name: str) -> None:
    """Costs are cross-entropies of the scores, pieces give the whole, and later tokens change nothing before them."""
    model, (tokens, targets) = small(name), text()
    scores = model(tokens)
    costs, _ = model(tokens, model.begin(3), targets)
    wanted = F.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    torch.testing.assert_close(costs, wanted)
    if name in CARRYING:
        state, parts = model.begin(3), []
        for piece in tokens.split([5, 1, 8], 1):
            part, state = model(piece, state)
            parts.append(part)
        torch.testing.assert_close(torch.cat(parts, 1), scores)
        assert state.keys() == model.begin(3).keys()
    other = tokens.clone()
    other[:, 9:] = (other[:, 9:] + 1) % 9
    found = model(other)
    assert torch.equal(found[:, :9], scores[:, :9])
    assert not torch.allclose(found[:, 9:], scores[:, 9:])


def test_the_lstm_written_out() -> None:
    """Gates i, f, g, o by their definition, two layers of them."""
    model, (tokens, _) = small("lstm"), text()
    hidden = model.encoder.weight[tokens]
    for layer in model.recurrent:
        h = c = torch.zeros(3, layer.hidden_size, dtype=torch.float64)
        outputs = []
        for x in hidden.unbind(1):
            z = x @ layer.weight_ih_l0.T + layer.bias_ih_l0 + h @ layer.weight_hh_l0.T + layer.bias_hh_l0
            i, f, g, o = z.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        hidden = torch.stack(outputs, 1)
    torch.testing.assert_close(model(tokens), hidden @ model.decoder.weight.T + model.decoder.bias)


def test_the_pointer_written_out() -> None:
    """The mixture by its definition, word by word, with a window that is shorter than the text."""
    model, (tokens, targets) = small("pointer-lstm"), text()
    model.window = 6
    past, state = text(seed=5)[0], model.begin(3)
    _, state = model(past, state)
    outputs, _ = super(type(model), model).read(torch.cat([past, tokens], 1), model.begin(3), first=False)
    words, logits = torch.cat([past, tokens], 1), model.decoder(outputs)
    model.train()
    model.dropout.p = 0.0
    costs, _ = model(tokens, state, targets)
    for b in range(3):
        for t in range(14):
            at = 14 + t
            window = range(max(0, at - 5), at + 1)
            query = torch.tanh(model.query(outputs[b, at]))
            z = torch.stack([query @ outputs[b, i] for i in window] + [query @ model.sentinel])
            a = z.softmax(0)
            pointed = sum((a[n] for n, i in enumerate(window) if words[b, i] == targets[b, t]), torch.zeros(()))
            p = a[-1] * logits[b, at].softmax(0)[targets[b, t]] + pointed
            wanted = -p.log() - (a[-1] + pointed).log()
            torch.testing.assert_close(costs[b, t], wanted.double())


def test_the_gpt_written_out() -> None:
    model, (tokens, _) = small("gpt", 0.1), text()
    x = model.tokens.weight[tokens] + model.positions.weight[:14]
    later = torch.ones(14, 14, dtype=torch.bool).triu(1)
    for block in model.blocks:
        own, y = block.attention, F.layer_norm(x, x.shape[-1:], block.norm1.weight, block.norm1.bias)
        heads = []
        for head in range(4):
            rows = slice(head * own.width, (head + 1) * own.width)
            q, k, v = (y @ m.weight[rows].T + m.bias[rows] for m in (own.query, own.key, own.value))
            scores = (q @ k.mT / own.width**0.5).masked_fill(later, float("-inf"))
            heads.append(scores.softmax(-1) @ v)
        x = x + own.out(torch.cat(heads, -1))
        y = F.layer_norm(x, x.shape[-1:], block.norm2.weight, block.norm2.bias)
        x = x + block.down(F.gelu(block.up(y)))
    wanted = F.layer_norm(x, x.shape[-1:], model.norm.weight, model.norm.bias) @ model.tokens.weight.T
    torch.testing.assert_close(model(tokens), wanted)
    with pytest.raises(TaskError, match="sees 16 tokens at once, not 17"):
        model(torch.zeros(1, 17, dtype=torch.int64))


# -- scope and structure -----------------------------------------------------------------------------------------------


def test_scopes() -> None:
    """Matrices of recurrent layers by name; tied weights once, under the embedding's name; embeddings by choice."""
    layers = [f"layers.{layer}.weight_{part}_l0" for layer in (0, 1) for part in ("ih", "hh")]
    assert list(tk.scope(small("lstm"))) == [*layers, "decoder.weight"]
    assert list(tk.scope(small("lstm"), embeddings=True)) == ["encoder.weight", *layers, "decoder.weight"]
    for embeddings in (False, True):
        assert list(tk.scope(small("lstm-tied"), embeddings=embeddings)) == ["encoder.weight", *layers]
    assert list(tk.scope(small("lstm-tied"), output=False)) == layers
    assert list(tk.scope(small("pointer-lstm"), output=False)) == [*layers, "query.weight"]
    assert "tokens.weight" in tk.scope(small("gpt"))
    assert "positions.weight" not in tk.scope(small("gpt"))


def masked(name: str, model: nn.Module, mask: tk.Mask) -> language.LanguageModel:
    other = small(name)
    other.load_state_dict(model.state_dict())
    mask.apply_(other)
    return other


@pytest.mark.parametrize("name", sample(NAMES, [name for name in NAMES if name != "gpt"]))
def test_shrunk_models_are_equal_to_masked_ones(name: str) -> None:
    """Outputs, carried states and gradients, so training too. Carried entries are cut with what they follow."""
    model, (tokens, targets) = small(name), text(2, 6)
    mask = tk.structure.channels(model, tokens, 0.4, score="l1")
    less, other = tk.shrink(model, mask, tokens), masked(name, model, mask)
    assert sum(p.numel() for p in less.parameters()) < sum(p.numel() for p in model.parameters())
    (one, small_state), (two, whole) = (each(tokens, each.begin(2)) for each in (less, other))
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    for entry, value in whole.items():
        if entry in model.follows:
            dim, followed, of = model.follows[entry]
            assert of == 1
            kept = mask[followed].any(0)
            assert not value.index_select(dim, (~kept).nonzero().flatten()).any()
            value = value.index_select(dim, kept.nonzero().flatten())
        torch.testing.assert_close(small_state[entry], value, rtol=1e-12, atol=1e-12)
    costs = [each(tokens, state, targets)[0] for each, state in ((less, small_state), (other, whole))]
    torch.testing.assert_close(*costs, rtol=1e-12, atol=1e-12)
    for each in costs:
        each.mean().backward()
    left = dict(less.named_parameters())
    for key, parameter in other.named_parameters():
        gradient = parameter.grad[mask[key]] if key in mask else parameter.grad.flatten()
        torch.testing.assert_close(left[key].grad.flatten(), gradient, rtol=1e-10, atol=1e-14)


def test_whole_heads_and_feed_forward_units_go() -> None:
    model, (tokens, _) = small("gpt", 0.1), text(2, 6)
    mask = tk.structure.channels(model, tokens, 0.4, score="random")
    less, width = tk.shrink(model, mask, tokens), model.blocks[0].attention.width
    for old, new in zip(model.blocks, less.blocks, strict=True):
        assert {len(layer.weight) for layer in (new.attention.query, new.attention.key, new.attention.value)} == {
            new.attention.out.in_features
        }
        assert new.attention.out.in_features % width == 0
        assert new.down.in_features == new.up.out_features <= old.up.out_features
    assert any(len(new.attention.query.weight) < 4 * width for new in less.blocks)
    for number in range(len(less.blocks)):  # the same heads of all three, and of what reads them
        kept = [mask[f"blocks.{number}.attention.{part}.weight"].any(1) for part in ("query", "key", "value")]
        heads = kept[0].view(-1, width)
        assert torch.equal(heads.any(1), heads.all(1))
        assert all(torch.equal(part, kept[0]) for part in kept)
        assert torch.equal(mask[f"blocks.{number}.attention.out.weight"].any(0), kept[0])


# -- names -------------------------------------------------------------------------------------------------------------


def test_narrower_forms() -> None:
    found = language.narrower("lstm-tied", vocabulary=500, context=8, parameters=100_000)
    assert found is not None

    def count(name: str) -> int:
        return sum(p.numel() for p in language.build(name, vocabulary=500, context=8, dropout=0.0).parameters())

    assert count(found) <= 100_000 < count(f"lstm-tied@{float(found.partition('@')[2]) + 1 / 64}")
    assert language.narrower("gpt", vocabulary=500, context=8, parameters=100) is None


def test_unknown_models() -> None:
    with pytest.raises(TaskError, match="did you mean lstm-tied"):
        language.check("lstm_tied")
    with pytest.raises(TaskError, match="timm has no language models"):
        language.check("timm:resnet18")
