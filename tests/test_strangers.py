"""Tickets and run files of strangers: commands import, open and call nothing that these files name."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from cli.calling import call
from samples import sample
from strangers import MODEL, Watch, forged, info_of_digits, watch
from ticketry.cli import main
from ticketry.errors import TicketError, TrustError
from ticketry.experiments.run_file import require_trust

__all__ = ["watch"]  # a fixture

COMMANDS = (
    "verify {} --store store --workers 0 --seeds 1 --controls none",
    "compile {} -o out.tk",
    "bench {} --batch 1 --rounds 1",
    "export {} -o out.onnx",
    "structure {} --to channels -o out",
)
"""Every command that creates the task of a ticket."""


def spec(name: Any, model: Any = None, **options: Any) -> dict[str, Any]:
    return {"name": name, "model": model, "options": options}


CODE = {
    "a shell": spec("os:system", command="touch here"),
    "a dotted path": spec("os:path.os.system", command="touch here"),
    "a module of this folder": spec("evil:make"),
    "an annotated function of this folder": spec("evil:make_as_told"),
    "a module alone": spec("evil"),
    "a module by a path": spec("../evil:make"),
    "built in, with a colon behind": spec("digits:evil"),
    "what a package offers": spec("some-package"),
    "eval": spec("builtins:eval", source="1"),
    "the registry itself": spec("ticketry.registry:load_object", target="evil"),
}
PLACES = {
    "a folder of a network": spec("hf:/etc"),
    "a network of a hub": spec("hf:someone/something"),
    "a table": spec("table:/etc/passwd", target="root"),
    "a text": spec("text:/etc/passwd"),
    "a text with a vocabulary": spec("text:evil.py", vocabulary="/etc/passwd"),
    "an environment": spec("gym:CartPole-v1"),
    "an environment with a module": spec("gym:evil:Environment-v0"),
    "a folder of images": spec("imagefolder", path="/etc"),
    "shards of images": spec("imageshards", path="https://host/shards"),
    "a path as an option of digits": spec("digits", path="/etc"),
    "an unknown option": spec("digits", MODEL, colour="red"),
}
NETWORKS = {
    "another library": spec("digits", "timm:resnet18"),
    "a hub": spec("digits", "timm:hf-hub:someone/something"),
    "a folder, by timm": spec("digits", "timm:local-dir:/etc"),
    "a class": spec("digits", "evil:Mine"),
    "with a width": spec("digits", "evil:Mine@0.5"),
    "of a language": spec("ptb", "evil:Mine"),
    "endless": spec("digits", "mlp-" + "-".join(["9"] * 500)),
}
HUGE = {
    "a width of millions": spec("digits", "mlp-999999-999999-999999"),
    "a network of gigabytes": spec("digits", "vgg-19@4"),
    "pieces without an end": spec("ptb", "lstm", time="999999999999"),
    "a number of 5,000 digits": spec("ptb", "lstm", time="9" * 5000),
    "more copies than fit": spec("cartpole", "mlp-6", copies="99999999999"),
}


def check_all_commands(watch: Watch, ticket: Path, commands: Sequence[str] = COMMANDS) -> list[str]:
    watch.expect()
    return [watch.refused(*shlex.split(command.format(ticket))) for command in commands]


def ticket_naming(watch: Watch, request: dict[str, Any]) -> Path:
    info = info_of_digits()
    info["task"]["spec"] = request
    return forged(watch.folder / "ticket", info)


REQUESTS = {**CODE, **PLACES, **NETWORKS}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_ticket_uses_nothing_that_it_names(watch: Watch, name: str) -> None:
    """All commands share the check: each request is tried with one, a few with all of them."""
    number = list(REQUESTS).index(name)
    commands = COMMANDS if number % 9 == 0 else COMMANDS[number % len(COMMANDS) :][:1]
    for message in check_all_commands(watch, ticket_naming(watch, REQUESTS[name]), commands):
        assert "--trust" in message


@pytest.mark.parametrize("name", ["a shell", "a module of this folder", "a dotted path", "with a width"])
def test_a_ticket_without_a_request_uses_nothing_that_it_names(watch: Watch, name: str) -> None:
    """As tickets were written before they had requests."""
    info = info_of_digits(task={"name": REQUESTS[name]["name"], "key": {"model": REQUESTS[name]["model"]}})
    assert all("--trust" in line for line in check_all_commands(watch, forged(watch.folder / "ticket", info)))


@pytest.mark.parametrize("name", HUGE)
def test_a_ticket_takes_no_memory_for_what_it_names(watch: Watch, name: str) -> None:
    check_all_commands(watch, ticket_naming(watch, HUGE[name]), COMMANDS[:2])


@pytest.mark.parametrize(
    "info",
    [
        {"structure": {"kind": "1:999999999"}},
        {"structure": {"kind": "1:99999999999999999999"}},
        {"settings": {"pattern": "999999999x1"}},
    ],
    ids=str,
)
def test_a_ticket_takes_no_memory_for_groups_that_no_layer_has(watch: Watch, info: dict[str, Any]) -> None:
    ticket = forged(watch.folder / "ticket", info_of_digits(**info))
    watch.expect()
    words = shlex.split("--store store --workers 0 --seeds 1 --controls shuffled")
    message = watch.refused("verify", str(ticket), *words)
    assert "groups of more rows or inputs than any layer" in message


def test_the_same_from_python(watch: Watch) -> None:
    ticket = ticket_naming(watch, spec("evil:make"))
    watch.expect()
    for use in (
        lambda: tk.verify(ticket, store="store", workers=0),
        lambda: tk.bench(ticket, store="store"),
        lambda: tk.restructure(ticket, "channels"),
    ):
        with pytest.raises(TrustError, match=r"names the task 'evil:make'.*trust=True"):
            use()
    watch.untouched()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("evil:make", "does not say that it returns a task"),
        ("os:system", "is no task but <built-in function system>"),
        ("evil:score", "does not say that it returns a task"),
    ],
)
def test_only_what_returns_a_task_is_called_even_if_trusted(
    watch: Watch, monkeypatch: pytest.MonkeyPatch, name: str, told: str
) -> None:
    ticket = ticket_naming(watch, spec(name))
    with pytest.raises(TicketError, match=told):
        tk.verify(ticket, store="store", workers=0, trust=True)
    assert not watch.mark.exists() or watch.mark.read_text() == "imported", "it may be imported, and is not called"


def test_a_user_may_name_the_task(watch: Watch) -> None:
    (watch.folder / "mine.py").write_text(
        f"from ticketry.tasks import catalogue\n"
        f"def task() -> 'ticketry.tasks.task.Task':\n    return catalogue.get('digits', model={MODEL!r})\n"
    )
    ticket = ticket_naming(watch, spec("mine:task"))
    assert "--trust" in watch_refuses(watch, "structure", str(ticket), "--to", "channels", "-o", "one")
    try:
        assert main(["structure", str(ticket), "--to", "channels", "-o", "one", "--task", "mine:task"]) == 0
        assert main(["structure", str(ticket), "--to", "channels", "-o", "two", "--trust"]) == 0
    finally:
        sys.modules.pop("mine", None)
    assert (watch.folder / "one").exists()
    assert (watch.folder / "two").exists()


def watch_refuses(watch: Watch, *words: str) -> str:
    watch.expect()
    return watch.refused(*words)


RUN_FILES = {
    "a method": 'method = "evil:make"',
    "a task": 'method = "imp"\ntask = "evil:make"',
    "a text": 'method = "imp"\ntask = "text:/etc/passwd"',
    "a network": 'method = "imp"\nmodel = "evil:Mine"',
    "a path": 'method = "imp"\n[options]\npath = "/etc"',
    "a control": 'method = "imp"\ncontrols = ["shuffled", "evil:Mine"]',
    "a control's network": 'method = "imp"\ncontrols = ["dense_of_flops:evil:Mine"]\n[settings]\nflops = [0.5]',
    "a score of a score": 'method = "oneshot"\n[settings]\nscore = "inverted:evil:score"',
    "gates": 'method = "continuous"\n[settings]\nkind = "evil:Mine"',
    "a store": 'method = "imp"\nstore = "../elsewhere"',
    "data": 'method = "imp"\ndata = "/etc"',
}


@pytest.mark.parametrize("text", RUN_FILES.values(), ids=RUN_FILES)
def test_a_run_file_uses_nothing_that_it_names(watch: Watch, text: str) -> None:
    (watch.folder / "run.toml").write_text(text)
    for command in ("search", "stability"):
        message = watch_refuses(watch, command, "--config", "run.toml")
        assert "--trust" in message
        assert "run.toml names the" in message


@pytest.mark.parametrize("control", ["dense_of_flops", "dense_of_flops:vgg-11", "dense_of_flops:conv-4@0.5", "erk"])
def test_dense_networks_by_name_are_no_code(control: str) -> None:
    require_trust({"method": "imp", "controls": [control]}, (), of="run.toml")


def test_a_run_file_may_name_costs_in_the_store_and_no_other_file(tmp_path: Path) -> None:
    kept, other = tmp_path / "store" / "costs" / "seconds-1.json", tmp_path / "other.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    other.write_text("{}")
    (kept.parent / "link.json").symlink_to(other)

    def named(profile: Path | str, store: Path | str | None) -> None:
        settings = {"time": [0.5], "profile": str(profile)}
        require_trust({"method": "imp", "settings": settings}, (), of="run.toml", store=store)

    named(kept, tmp_path / "store")
    for profile in (other, kept.parent / "link.json", kept.parent / ".." / ".." / "other.json", kept.parent, "\0"):
        with pytest.raises(TrustError):
            named(profile, tmp_path / "store")
    for store in (None, tmp_path / "another", "s3://bucket/folder"):
        with pytest.raises(TrustError):
            named(kept, store)


ODD: tuple[Any, ...] = (None, -1, 1e300, "text", [1], {"a": 1}, 2**70)
"""Values of other types and sizes than any entry has."""
ENTRIES = (
    *("task", "task.name", "task.key", "task.key.model", "task.spec", "task.spec.name", "task.spec.model"),
    *("task.spec.options", "recipe", "recipe.lr", "recipe.length", "recipe.batch", "recipe.milestones", "seeds"),
    *("seeds.order", "seeds.mask", "segment", "segment.first", "segment.last", "segment.shrunk", "retrain"),
    "segment.variants",
    *("rewind_step", "settings", "settings.pattern", "structure", "structure.kind", "method", "replicate", "level"),
    *("search_steps", "metric", "value", "parameters"),
)


@pytest.mark.parametrize("entry", sample(ENTRIES, ENTRIES[::18]))
def test_entries_of_other_types_are_refused_or_ignored(
    watch: Watch, capsys: pytest.CaptureFixture[str], entry: str
) -> None:
    for number, value in enumerate(ODD):
        info = info_of_digits(structure={"kind": ""})
        *way, last = entry.split(".")
        place = info
        for part in way:
            place = place[part]
        place[last] = value
        ticket = forged(watch.folder / f"ticket-{number}", info)
        for command in QUICK if entry.startswith("task") else QUICK[:1]:
            code, _, err = call(capsys, *shlex.split(command.format(ticket, number)))
            assert code in (0, 1, 2), (entry, value)
            assert "Traceback" not in err, (entry, value)
            if code:
                assert err.startswith("ticketry: "), (entry, value, err)
                assert len(err.strip().splitlines()) == 1, (entry, value, err)


QUICK = (
    "verify {0} --store store --workers 0 --seeds 1 --controls none --claim matches --no-noise --no-references",
    "structure {0} --to channels -o out-{1}",
)
"""Commands that read most of a ticket."""
