"""Fine-tuning against transformers: scores, training, tickets that start from stored weights, and refused folders."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import ticketry as tk
from samples import sample
from tasks.small_classifier import GOOD, rows, saved, transformers, write_rows
from ticketry.errors import DataError, TaskError
from ticketry.evidence.controls import train_control
from ticketry.experiments.ticket_model import load_ticket_model
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Seeds
from ticketry.lab.training.state import initial_state
from ticketry.lab.training.supervised import evaluate
from ticketry.search import method
from ticketry.tasks import catalogue
from ticketry.tasks.fine_tuning import FineTuning, digest_texts, find_text_files, read_texts
from ticketry.testing import check_search


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("hf") / "tiny-bert")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("texts") / "said.jsonl", rows(120))


def task_of(folder: Path, texts: Path, **options: str) -> FineTuning:
    found = catalogue.get(f"hf:{folder}", options={"texts": str(texts), **options})
    assert isinstance(found, FineTuning)
    return found


def plain(folder: Path) -> Any:
    """Load the network with transformers."""
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()


def recipe_of(task: FineTuning, length: str = "24it") -> tk.Recipe:
    return task.recipe.changed(length=length, batch=8, lr=5e-3)


# -- the network and its texts -----------------------------------------------------------------------------------------


def test_scores_are_those_of_transformers(folder: Path, texts: Path) -> None:
    """A whole split with its padding, against each text alone."""
    tokenizer, other = transformers.AutoTokenizer.from_pretrained(folder), plain(folder)
    for columns in ("text", "text,second"):
        task = task_of(folder, texts, text=columns)
        split, network = task.load().test, task.build().eval()
        with torch.no_grad():
            found = network(task.prepare(split.inputs))
            wanted = torch.cat(
                [other(**tokenizer(*text, return_tensors="pt")).logits for text in task._labelled_splits[2].texts]
            )
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        assert [task.classes[target] for target in split.targets] == list(task._labelled_splits[2].labels)


def test_splits_cover_the_texts_and_share_the_classes(folder: Path, texts: Path) -> None:
    task = task_of(folder, texts, validation="0.2")
    assert [len(part) for part in task._labelled_splits] == [84, 24, 12]
    everything = sorted(text for part in task._labelled_splits for text in part.texts)
    assert everything == sorted((row["text"],) for row in rows(120))
    assert all(2 * part.labels.count("good") == len(part) for part in task._labelled_splits)
    assert len(task_of(folder, texts, train="20").load().train) == 20


def test_three_files_are_three_splits(folder: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("train", "dev", "test")):
        write_rows(tmp_path / f"{name}.jsonl", rows(10 + seed, seed))
    assert [len(part) for part in task_of(folder, tmp_path)._labelled_splits] == [10, 11, 12]
    write_rows(tmp_path / "test.jsonl", [{"text": "my net wins", "label": "great"}])
    with pytest.raises(TaskError, match="no training text has the label 'great'"):
        task_of(folder, tmp_path).load()


def test_classes_are_in_the_order_of_the_network(tmp_path: Path, texts: Path) -> None:
    folder = saved(tmp_path / "own", id2label={0: "good", 1: "bad"}, label2id={"good": 0, "bad": 1})
    assert task_of(folder, texts).classes == ["good", "bad"]
    lines = [{"text": GOOD[0], "label": str(label)} for label in (10, 9, 2) for _ in range(3)]
    assert task_of(folder, write_rows(tmp_path / "n.jsonl", lines)).classes == ["2", "9", "10"]


def test_the_seed_draws_new_layers(folder: Path, tmp_path: Path) -> None:
    """A last layer for three classes; the other weights are stored in the folder."""
    lines = [{"text": word, "label": label} for word in GOOD for label in "abc"]
    task, stored = task_of(folder, write_rows(tmp_path / "t.jsonl", lines)), load_file(folder / "model.safetensors")
    one, again, other = (initial_state(task, seed) for seed in (0, 0, 1))
    assert one.keys() == stored.keys()
    for name, value in one.items():
        assert torch.equal(value, again[name])
        if name == "classifier.weight":
            assert value.shape == (3, 32)
            assert not torch.equal(value, other[name])
        elif not name.startswith("classifier"):
            assert torch.equal(value, stored[name])
    drawn = initial_state(catalogue.with_random_weights(task), 0)
    assert all(not torch.equal(value, stored[name]) for name, value in drawn.items() if value.dim() > 1)
    assert catalogue.with_random_weights(task).key() != task.key()
    assert catalogue.with_random_weights(catalogue.with_random_weights(task)) is not task


def test_the_key_depends_on_contents_and_options(folder: Path, texts: Path, tmp_path: Path) -> None:
    key = task_of(folder, texts).key()
    assert json.loads(json.dumps(key)) == key
    copies = shutil.copytree(folder, tmp_path / "copy"), shutil.copy(texts, tmp_path / "t.jsonl")
    moved = task_of(*map(Path, copies))
    assert moved.key() == key
    assert moved.spec is not None
    assert catalogue.create_task(moved.spec).key() == key
    others = [{"length": "9"}, {"validation": "0.2"}, {"text": "second"}, {"pretrained": "false"}]
    assert all(task_of(folder, texts, **options).key() != key for options in others)
    saved(tmp_path / "copy", "bert", 30)
    assert task_of(tmp_path / "copy", texts).key() != key


# -- searches ----------------------------------------------------------------------------------------------------------


def test_tickets_start_from_the_stored_weights(folder: Path, texts: Path, tmp_path: Path) -> None:
    """At each level of IMP, and not in its control; the ticket fits the network of transformers."""
    task, stored, imp = task_of(folder, texts), load_file(folder / "model.safetensors"), method("iterative")
    recipe, settings = recipe_of(task), imp.Settings(densities=(0.6, 0.3))
    with Lab(tmp_path / "store", device="cpu") as lab:
        dense, *tickets = imp.search(lab, task, recipe, settings, Seeds())
        assert dense.result.metrics["test"]["accuracy"] > 90
        assert [lab.store.get_mask(str(found.mask)).density for found in tickets] == pytest.approx([0.6, 0.3], abs=1e-4)
        for found in tickets:
            begun = lab.state(found.rewound)
            assert all(torch.equal(begun[name], value) for name, value in stored.items())
        found = tickets[-1]
        fresh = train_control(lab, task, recipe, "random_reinit", found, Seeds())
        assert fresh.segment.mask == found.mask
        drawn = lab.store.get_tensors(str(fresh.segment.start.state))
        assert not torch.equal(
            drawn["bert.embeddings.word_embeddings.weight"], begun["bert.embeddings.word_embeddings.weight"]
        )
        mask, trained = lab.store.get_mask(str(found.mask)), lab.state(found.result)
        info = {"task": {"name": task.name, "key": dict(task.key())}}
        ticket = tk.Ticket(mask, begun, info, trained=trained)
        ticket.save(tmp_path / "ticket")
    network = tk.Ticket.load(tmp_path / "ticket").apply(plain(folder), "trained")
    split = task.load().test
    with torch.no_grad():
        ids = task.prepare(split.inputs)
        scores = network(input_ids=ids, attention_mask=(ids != 0).long()).logits
    accuracy = 100 * float((scores.argmax(1) == split.targets).double().mean())
    assert accuracy == pytest.approx(found.result.metrics["test"]["accuracy"])
    source = load_ticket_model(tmp_path / "ticket", task=task)
    assert source.model(source.inputs).shape == (len(source.inputs), 2)


D, K = {"density": (0.5,)}, {"keep_at_least": 1}
ONE: list[tuple[str, dict[str, Any]]] = [("oneshot", {**D, **K})]
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("early", {**D, **K, "every": "2it"}),
    ("early", {**D, **K, "when": "0", "score": "crop"}),
    ("early", {**D, "every": "2it", "structure": "channels"}),
    ("gradual", {**D, **K, "frequency": "4it"}),
    ("continuous", {"init": (0.02,), "rounds": 1, "rewind": "1ep"}),
    ("iterative", {"densities": (0.5,), "structure": "channels"}),
    ("dynamic", {**D, "frequency": "4it"}),
    ("l0", {**D, "collapse": "keep"}),
    ("early", {**D, **K, "when": "0", "score": "snip"}),
    ("gradual", {**D, "frequency": "4it", "structure": "channels"}),
    ("concrete", {**D, "collapse": "keep"}),
    ("acdc", D),
]


@pytest.mark.parametrize("searches", sample([ONE, OTHERS], 1, ids=["one", "others"]))
def test_methods(folder: Path, texts: Path, tmp_path: Path, searches: list[tuple[str, dict[str, Any]]]) -> None:
    task = task_of(folder, texts)
    with Lab(tmp_path, device="cpu") as lab:
        for name, settings in searches:
            chosen = method(name)
            found = list(chosen.search(lab, task, recipe_of(task), chosen.Settings(**settings), Seeds()))
            for ticket in found[1:]:
                mask, state = lab.store.get_mask(str(ticket.mask)), lab.state(ticket.result)
                assert mask.density < 0.6 or name == "continuous", (name, settings)
                assert all(not state[tensor][~kept].any() for tensor, kept in mask.items())


@pytest.mark.slow
def test_every_promise_of_a_search_is_kept(folder: Path, texts: Path, tmp_path: Path) -> None:
    task = task_of(folder, texts)
    settings = method("iterative").Settings(densities=(0.5,))
    check_search("iterative", tmp_path, settings=settings, densities=(0.5,), task=task, recipe=recipe_of(task))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_shrunk_networks_are_equal_to_masked_ones(texts: Path, tmp_path: Path, kind: str) -> None:
    """Whole heads and feed-forward units, in double precision, with padded texts."""
    task = task_of(saved(tmp_path / kind, kind), texts)
    inputs = task.prepare(task.load().test.inputs)
    model, masked = task.build().double().eval(), task.build().double().eval()
    # Chosen in single precision, as in a search: whole heads must be found in spite of small new weights.
    mask = tk.structure.channels(task.build(), inputs[:2], density=0.5, score="l1")
    for name, kept in mask.items():
        if "attention" in name and name.endswith(("query.weight", "key.weight", "value.weight")):
            heads = kept.any(1).view(4, -1)
            assert torch.equal(heads.any(1), heads.all(1)), name
    small = tk.shrink(model, mask, inputs[:2])
    masked = mask.apply_(masked)
    with torch.no_grad():
        torch.testing.assert_close(small(inputs), masked(inputs), rtol=1e-11, atol=1e-11)
    assert sum(p.numel() for p in small.parameters()) < 0.9 * sum(p.numel() for p in model.parameters())
    assert set(small.state_dict()) == set(model.state_dict())


def test_training_beside_a_plain_loop(folder: Path, texts: Path, tmp_path: Path) -> None:
    """Weights after some steps are those of a plain loop with the network and the loss of transformers."""
    task = task_of(folder, texts)
    recipe = recipe_of(task, "5it").changed(schedule="constant", warmup="0it", clip=0.0)
    with Lab(tmp_path, device="cpu") as lab:
        segment = lab.segment(task, start=0, recipe=recipe, order_seed=3)
        result = lab.train(segment)
        session = lab.course(task).session(recipe, 3, lab.arithmetic(task))
        batches, found = list(session.batches(range(5))), lab.state(result)
        network = plain(folder).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
        for inputs, targets in batches:
            optimizer.zero_grad()
            ids = inputs.long()
            network(input_ids=ids, attention_mask=(ids != 0).long(), labels=targets).loss.backward()
            optimizer.step()
        for name, value in network.state_dict().items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
        with torch.no_grad():
            split = task.load().validation
            ids = split.inputs.long()
            scores = network.eval()(input_ids=ids, attention_mask=(ids != 0).long()).logits
        loss = evaluate(task, lab.course(task), lab.model(task, result), "validation", lab.arithmetic(task))["loss"]
        assert loss == pytest.approx(float(F.cross_entropy(scores, split.targets)), rel=1e-3)


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"words": "3"}, "has no option words: it has texts, text, target, length"),
        ({"length": "25"}, "length of .* is 25 tokens, and its network sees at most 24"),
        ({"validation": "0.6", "test": "0.4"}, "leave some to train on"),
        ({"pretrained": "yes"}, "pretrained of .* is true or false, not 'yes'"),
        ({"text": "a,b,c"}, "is a column, or two"),
    ],
)
def test_wrong_options(folder: Path, texts: Path, options: dict[str, str], told: str) -> None:
    with pytest.raises(TaskError, match=told):
        task_of(folder, texts, **options)


def test_wrong_requests(folder: Path, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="--task hf:FOLDER"):
        catalogue.get("hf:")
    with pytest.raises(TaskError, match=r"absent has no config\.json"):
        catalogue.get(f"hf:{tmp_path}/absent")
    with pytest.raises(TaskError, match="is a network itself: leave --model gpt out"):
        catalogue.get(f"hf:{folder}", model="gpt")
    with pytest.raises(TaskError, match=r"needs to know the texts: --option texts=PATH"):
        catalogue.get(f"hf:{folder}").load()
    with pytest.raises(DataError, match="has no column 'label2'"):
        task_of(folder, texts, target="label2").load()
    few = write_rows(tmp_path / "few.jsonl", [*rows(20), {"text": "a mask", "label": "so-so"}])
    with pytest.raises(TaskError, match="the label 'so-so' has too few texts for three splits: at least 3"):
        task_of(folder, few).load()
    same = write_rows(tmp_path / "same.jsonl", [{**row, "label": "good"} for row in rows(20)])
    with pytest.raises(TaskError, match="all texts have the label 'good'"):
        task_of(folder, same).build()


def test_unusable_folders(folder: Path, texts: Path, tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        return shutil.copytree(whole, tmp_path / name)

    whole = folder
    (broken("weights") / "model.safetensors").unlink()
    with pytest.raises(TaskError, match=r"has no \*\.safetensors"):
        task_of(tmp_path / "weights", texts)
    folder = saved(tmp_path / "vocabulary", words=9)
    with pytest.raises(DataError, match=r"makes the token .*, and the network knows 9: they do not belong together"):
        task_of(folder, texts).load()
    folder = broken("kind")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "vit"}))
    with pytest.raises(TaskError, match="does not hold a sequence classifier that transformers can use"):
        task_of(folder, texts).build()
    folder = broken("other")
    shutil.copy(saved(tmp_path / "gpt", "gpt2") / "model.safetensors", folder)
    with pytest.raises(TaskError, match=r"has no weights for bert\..* another network than its config\.json"):
        task_of(folder, texts).build()
    folder = broken("tokenizer")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(TaskError, match=r"has no tokenizer \(tokenizer\.json"):
        task_of(folder, texts).load()
    folder = broken("padding")
    about = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in about.items() if k != "pad_token"}))
    with pytest.raises(TaskError, match="has no padding token"):
        task_of(folder, texts).load()


@pytest.mark.parametrize("place", ["config.json", "tokenizer_config.json"])
def test_code_in_the_folder_is_never_run(texts: Path, tmp_path: Path, place: str) -> None:
    """`auto_map` names a class in a module beside the weights."""
    folder, mark = saved(tmp_path / "net"), tmp_path / "mark"
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).write_text('run')\n")
    names = ("AutoConfig", "AutoModelForSequenceClassification", "AutoTokenizer")
    told = json.loads((folder / place).read_text())
    told["auto_map"] = {name: "evil.Mine" if name != "AutoTokenizer" else ["evil.Mine", "evil.Mine"] for name in names}
    (folder / place).write_text(json.dumps(told))
    with contextlib.suppress(TaskError):
        task = catalogue.get(f"hf:{folder}", options={"texts": str(texts)})
        task.build()
        task.load()
    assert not mark.exists()


# -- files of texts with labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text,label,more\n"one, two",0,x\n"say ""hi""",1,y\n'),
        ("a.tsv", 'text\tlabel\none, two\t0\nsay "hi"\t1\n'),
        ("a.jsonl", '{"text": "one, two", "label": 0}\n\n{"text": "say \\"hi\\"", "label": 1, "more": null}\n'),
    ],
)
def test_csv_tsv_and_jsonl_give_the_same_texts(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    found = read_texts(tmp_path / name, ("text",), "label")
    assert found.texts == (("one, two",), ('say "hi"',))
    assert found.labels == ("0", "1")


def test_two_columns_and_a_line_break_in_quotes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('premise,hypothesis,gold\n"one\ntwo",b,yes\n')
    found = read_texts(tmp_path / "a.csv", ("premise", "hypothesis"), "gold")
    assert (found.texts, found.labels) == ((("one\ntwo", "b"),), ("yes",))


def test_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("train.csv", "dev.jsonl", "test.tsv"):
        (tmp_path / name).write_text(name)
    assert [file.name for file in find_text_files(tmp_path).values()] == ["train.csv", "dev.jsonl", "test.tsv"]
    before = digest_texts(tmp_path)
    (tmp_path / "test.tsv").write_text("other")
    assert digest_texts(tmp_path) != before
    (tmp_path / "test.tsv").unlink()
    with pytest.raises(DataError, match="has no file of the test split"):
        find_text_files(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"text,label\n", "a.csv has no texts"),
        ("a.csv", b"text,labels\none,1\n", r"line 2 has no column 'label': did you mean labels\? it has text, labels"),
        ("a.csv", b"text,label\none,1\ntwo\n", "line 3 has 1 values, not 2 as the first"),
        ("a.csv", b"text,label\none,\n", "line 2, column 'label' is empty"),
        ("a.csv", b'text,label\n"one,1\n', "line 2: unexpected end of data"),
        ("a.csv", b"text,label\n\xff,1\n", "byte 11 is not UTF-8"),
        ("a.csv", b"text,label\n\0,1\n", "bytes that are 0"),
        ("a.jsonl", b'{"text": 1\n', "line 1 is no JSON"),
        ("a.jsonl", b"[1]\n", "line 1 is no JSON object"),
        ("a.csv", b"text,label\n ,1\n", "line 2, column 'text' is empty"),
        ("a.jsonl", b"[" * 5000, "line 1 is no JSON"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "line 1 is no JSON"),
        ("a.jsonl", b'{"text": "\\ud800", "label": 1}', "line 1 is no JSON"),
    ],
)
def test_wrong_texts_are_named(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told):
        read_texts(tmp_path / name, ("text",), "label")


def test_wrong_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no such texts"):
        find_text_files(tmp_path / "absent")
    (tmp_path / "a.parquet").write_text("x")
    with pytest.raises(DataError, match=r"does not end in \.csv, \.tsv, \.jsonl"):
        find_text_files(tmp_path / "a.parquet")
