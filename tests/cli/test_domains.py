"""Bad input of texts, tables, environments and pre-trained networks: told in words, by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from a_text import write_text_file
from ticketry.cli import main
from ticketry.tasks.language import task as language

ROWS = "".join(f"{i},{i * i % 7},{i % 3}\n" for i in range(30))
FILES = {
    "empty.txt": b"",
    "binary.txt": bytes(range(256)) * 40,
    "zeros.txt": b"text\0text" * 100,
    "missing.csv": f"a,b,price\n{ROWS}31,,1\n".encode(),
    "words.csv": f"a,b,price\n{ROWS}31,red,1\n".encode(),
    "good.csv": f"a,b,price\n{ROWS}".encode(),
}


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and standard error of a command that must not succeed."""
    code = main(list(words))
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return code, err


@pytest.mark.parametrize(
    ("task", "told"),
    [
        (("text:{}/empty.txt",), "empty.txt is empty: there is nothing to learn from"),
        (("text:{}/binary.txt",), "binary.txt is no text: byte 128 is not UTF-8"),
        (("text:{}/zeros.txt",), "zeros.txt is no text: byte 4 is 0"),
        (("text:{}/absent.txt",), "there is no such text"),
        (
            ("table:{}/missing.csv", "--target", "price", "--option", "missing=refuse"),
            "line 32, column 'b': the value is missing ('')",
        ),
        (("table:{}/words.csv", "--target", "price"), "line 32, column 'b': 'red' is no number"),
        (("table:{}/good.csv", "--target", "prize"), "has no column 'prize': did you mean price? it has a, b, price"),
        (("table:{}/good.csv",), "needs to know what to predict: --target COLUMN"),
        (("hf:{}",), "has no config.json"),
    ],
)
def test_what_cannot_be_learnt_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: tuple[str, ...], told: str
) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    words = [word.format(tmp_path) for word in task]
    store = str(tmp_path / "store")
    code, err = call(capsys, "search", "oneshot", "--task", *words, "--workers", "0", "--store", store)
    assert code == 1
    assert told in err


def test_a_vocabulary_that_is_no_longer_a_tickets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As many words, and other ones: shapes fit, and every number would stand for something else."""
    library = pytest.importorskip("tokenizers")
    file = tmp_path / "tokenizer.json"

    def save(*words: str) -> None:
        numbers = {word: number for number, word in enumerate(("[UNK]", *words))}
        made = library.Tokenizer(library.models.WordLevel(numbers, unk_token="[UNK]"))
        made.pre_tokenizer = library.pre_tokenizers.Whitespace()
        made.save(str(file))

    save("ticket", "wins", "mask")
    task = ["--task", f"text:{write_text_file(tmp_path)}", "--model", "lstm@0.05"]
    quick = ["--option", f"vocabulary={file}", "time=5", "--recipe.length", "4it", "--recipe.batch", "4"]
    store = ["--store", str(tmp_path / "store"), "--workers", "0"]
    more = ["--densities", "0.5", "--keep-at-least", "1", "--replicates", "1", "--controls", "none", "--json"]
    assert main(["search", "iterative", *task, *quick, *store, *more]) == 0
    (ticket,) = json.loads(capsys.readouterr().out)["tickets"]
    save("net", "loses", "lottery")
    language._custom_text_key.cache_clear()  # as in a process of its own
    code, err = call(capsys, "compile", ticket["path"], "-o", str(tmp_path / "model.tk"), "--trust")
    assert code == 1
    assert "does not fit the task text: its vocabulary is tokenizer of size 4" in err
    code, err = call(capsys, "verify", ticket["path"], *store, "--trust")
    assert code == 1
    assert "the ticket has another task or network: its vocabulary" in err
