"""Files of strangers: what a ticket, a run file, a record, a model file or a store makes a command do is nothing."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from cli.calling import call
from samples import sample
from strangers import MODEL, Watch, forged, info_of_digits, watch
from ticketry.errors import TicketError, TrustError
from ticketry.experiments.run_file import check_trust

__all__ = ["watch"]  # a fixture

COMMANDS = (
    "verify {} --store store --workers 0 --seeds 1 --controls none",
    "compile {} -o out.tk",
    "bench {} --batch 1 --rounds 1",
    "export {} -o out.onnx",
    "structure {} --to channels -o out",
)
"""Every command that makes the task of a ticket."""


def spec(name: Any, model: Any = None, **options: Any) -> dict[str, Any]:
    return {"name": name, "model": model, "options": options}


CODE = {
    "a shell": spec("os:system", command="touch here"),
    "a shell, opened": spec("subprocess:Popen", args="touch here", shell="true"),
    "a function of Python's": spec("subprocess:getoutput", cmd="touch here"),
    "a dotted path": spec("os:path.os.system", command="touch here"),
    "a module of this folder": spec("evil:make"),
    "a class of this folder": spec("evil:Mine"),
    "an annotated function of this folder": spec("evil:make_as_told"),
    "a module alone": spec("evil"),
    "the code of a module with a main": spec("antigravity:geohash"),
    "a module by a path": spec("../evil:make"),
    "spaces and line breaks": spec(" evil:make\n"),
    "built in, with a colon behind": spec("digits:evil"),
    "built in, in capitals": spec("DIGITS"),
    "what a package offers": spec("some-package"),
    "eval": spec("builtins:eval", source="1"),
    "exec": spec("builtins:exec", source="1"),
    "the registry itself": spec("ticketry.registry:load", target="evil"),
    "an internal function": spec("ticketry.tasks.images.task:make"),
}
PLACES = {
    "a folder of a network": spec("hf:/etc"),
    "a network of a hub": spec("hf:someone/something"),
    "a table": spec("table:/etc/passwd", target="root"),
    "a table that is there": spec("table:evil.py", target="x"),
    "a text": spec("text:/etc/passwd"),
    "a text that is there": spec("text:evil.py"),
    "a text with a vocabulary": spec("text:evil.py", vocabulary="/etc/passwd"),
    "an environment": spec("gym:CartPole-v1"),
    "an environment with a module": spec("gym:evil:Environment-v0"),
    "a folder of images": spec("imagefolder", path="/etc"),
    "a folder of images without a path": spec("imagefolder"),
    "shards of images": spec("imageshards", path="https://host/shards"),
    "a path as an option of digits": spec("digits", path="/etc"),
    "a path as the value of an option": spec("digits", train="/etc/passwd"),
    "an unknown option": spec("digits", MODEL, colour="red"),
}
NETWORKS = {
    "another library": spec("digits", "timm:resnet18"),
    "a hub": spec("digits", "timm:hf-hub:someone/something"),
    "a hub, in another word": spec("digits", "timm:hf_hub:someone/something"),
    "a folder, by timm": spec("digits", "timm:local-dir:/etc"),
    "torchvision": spec("digits", "torchvision:resnet18"),
    "a class": spec("digits", "evil:Mine"),
    "a function": spec("digits", "os:system"),
    "with a width": spec("digits", "evil:Mine@0.5"),
    "of a language": spec("ptb", "evil:Mine"),
    "endless": spec("digits", "mlp-" + "-".join(["9"] * 500)),
}
HUGE = {
    "a width of millions": spec("digits", "mlp-999999-999999-999999"),
    "a network of gigabytes": spec("digits", "vgg-19@4"),
    "another network": spec("digits", "conv-2"),
    "pieces without an end": spec("ptb", "lstm", time="999999999999"),
    "long pieces": spec("ptb", "gpt", time="65536"),
    "a number of 5,000 digits": spec("ptb", "lstm", time="9" * 5000),
    "more copies than fit": spec("cartpole", "mlp-6", copies="99999999999"),
}


GROUPS = {
    "more inputs than memory has": {"structure": {"kind": "1:999999999"}},
    "more than a number holds": {"structure": {"kind": "1:99999999999999999999"}},
    "blocks of more rows": {"settings": {"pattern": "999999999x1"}},
    "N of more": {"settings": {"pattern": "1:999999999"}},
}


@pytest.mark.parametrize("info", GROUPS.values(), ids=GROUPS)
def test_no_memory_is_taken_for_groups_that_no_layer_has(watch: Watch, info: dict[str, Any]) -> None:
    ticket = forged(watch.folder / "ticket", info_of_digits(**info))
    watch.expect()
    assert "groups of more rows or inputs than any layer" in watch.refused(
        "verify", str(ticket), "--store", "store", "--workers", "0", "--seeds", "1", "--controls", "shuffled"
    )


def check_all_commands(watch: Watch, ticket: Path) -> list[str]:
    watch.expect()
    return [watch.refused(*shlex.split(command.format(ticket))) for command in COMMANDS]


@pytest.mark.parametrize("asked", [*CODE.values(), *PLACES.values(), *NETWORKS.values()],
                         ids=[*CODE, *PLACES, *NETWORKS])  # fmt: skip
def test_what_a_ticket_names_is_not_used(watch: Watch, asked: dict[str, Any]) -> None:
    info = info_of_digits()
    info["task"]["spec"] = asked
    for told in check_all_commands(watch, forged(watch.folder / "ticket", info)):
        assert "--trust" in told


@pytest.mark.parametrize("asked", [*CODE.values(), *NETWORKS.values()], ids=[*CODE, *NETWORKS])
def test_nor_in_a_ticket_of_before_there_were_requests(watch: Watch, asked: dict[str, Any]) -> None:
    info = info_of_digits(task={"name": asked["name"], "key": {"model": asked["model"]}})
    told = check_all_commands(watch, forged(watch.folder / "ticket", info))
    assert all("--trust" in line for line in told)


@pytest.mark.parametrize("asked", HUGE.values(), ids=HUGE)
def test_no_memory_is_taken_for_what_a_ticket_names(watch: Watch, asked: dict[str, Any]) -> None:
    info = info_of_digits()
    info["task"]["spec"] = asked
    check_all_commands(watch, forged(watch.folder / "ticket", info))


def test_the_same_from_python(watch: Watch) -> None:
    info = info_of_digits()
    info["task"]["spec"] = spec("evil:make")
    ticket = forged(watch.folder / "ticket", info)
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
        ("subprocess:Popen", "is no task but <class 'subprocess.Popen'>"),
        ("evil:score", "does not say that it returns a task"),
    ],
)
def test_trusted_or_not_only_what_makes_tasks_is_called(
    watch: Watch, monkeypatch: pytest.MonkeyPatch, name: str, told: str
) -> None:
    info = info_of_digits()
    info["task"]["spec"] = spec(name)
    ticket = forged(watch.folder / "ticket", info)
    with pytest.raises(TicketError, match=told):
        tk.verify(ticket, store="store", workers=0, trust=True)
    assert not watch.mark.exists() or watch.mark.read_text() == "imported", "it may be imported, and is not called"


def test_a_user_may_name_it(watch: Watch, capsys: pytest.CaptureFixture[str]) -> None:
    (watch.folder / "mine.py").write_text(
        f"from ticketry.tasks import catalogue\n"
        f"def task() -> 'ticketry.tasks.task.Task':\n    return catalogue.get('digits', model={MODEL!r})\n"
    )
    info = info_of_digits()
    info["task"]["spec"] = spec("mine:task")
    ticket = forged(watch.folder / "ticket", info)
    assert "--trust" in watch_refuses(watch, "structure", str(ticket), "--to", "channels", "-o", "one")
    from ticketry.cli import main

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
    "a method of Python's": 'method = "os:system"',
    "a task": 'method = "imp"\ntask = "evil:make"',
    "a text": 'method = "imp"\ntask = "text:/etc/passwd"',
    "a network": 'method = "imp"\nmodel = "evil:Mine"',
    "a path": 'method = "imp"\n[options]\npath = "/etc"',
    "a control": 'method = "imp"\ncontrols = ["shuffled", "evil:Mine"]',
    "a control's network": 'method = "imp"\ncontrols = ["dense_of_flops:evil:Mine"]\n[settings]\nflops = [0.5]',
    "a score": 'method = "imp"\n[settings]\nscore = "evil:score"',
    "a score of a score": 'method = "oneshot"\n[settings]\nscore = "inverted:evil:score"',
    "gates": 'method = "continuous"\n[settings]\nkind = "evil:Mine"',
    "a store": 'method = "imp"\nstore = "../elsewhere"',
    "data": 'method = "imp"\ndata = "/etc"',
}


@pytest.mark.parametrize("text", RUN_FILES.values(), ids=RUN_FILES)
@pytest.mark.parametrize("command", ["search", "stability"])
def test_what_a_run_file_names_is_not_used(watch: Watch, text: str, command: str) -> None:
    (watch.folder / "run.toml").write_text(text)
    told = watch_refuses(watch, command, "--config", "run.toml")
    assert "--trust" in told
    assert "run.toml names the" in told


@pytest.mark.parametrize("control", ["dense_of_flops", "dense_of_flops:vgg-11", "dense_of_flops:conv-4@0.5", "erk"])
def test_dense_networks_by_name_are_no_code(control: str) -> None:
    check_trust({"method": "imp", "controls": [control]}, (), of="run.toml")


def test_costs_that_the_store_keeps_may_be_named_and_no_other_file(tmp_path: Path) -> None:
    kept, other = tmp_path / "store" / "costs" / "seconds-1.json", tmp_path / "other.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    other.write_text("{}")
    (kept.parent / "link.json").symlink_to(other)

    def named(profile: Path | str, store: Path | str | None) -> None:
        settings = {"time": [0.5], "profile": str(profile)}
        check_trust({"method": "imp", "settings": settings}, (), of="run.toml", store=store)

    named(kept, tmp_path / "store")
    for profile in (other, kept.parent / "link.json", kept.parent / ".." / ".." / "other.json", kept.parent, "\0"):
        with pytest.raises(TrustError):
            named(profile, tmp_path / "store")
    for store in (None, tmp_path / "another", "s3://bucket/folder"):
        with pytest.raises(TrustError):
            named(kept, store)


ODD: tuple[Any, ...] = (None, -1, 1e300, True, "text", [1], {"a": 1}, "9" * 400, 2**70)
"""Values of other types and sizes than any entry has."""
ENTRIES = (
    *("task", "task.name", "task.key", "task.key.model", "task.spec", "task.spec.name", "task.spec.model"),
    *("task.spec.options", "recipe", "recipe.lr", "recipe.length", "recipe.batch", "recipe.milestones", "seeds"),
    *("seeds.order", "seeds.mask", "segment", "segment.first", "segment.last", "segment.shrunk", "retrain"),
    "segment.variants",
    *("rewind_step", "settings", "settings.pattern", "structure", "structure.kind", "method", "replicate", "level"),
    *("search_steps", "metric", "value", "parameters"),
)


@pytest.mark.parametrize("entry", sample(ENTRIES, ENTRIES[::7]))
def test_entries_of_other_types(watch: Watch, capsys: pytest.CaptureFixture[str], entry: str) -> None:
    """Refused in a line before training, or carried out where the entry is not gone by; never a traceback."""
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
"""Of the commands that read a ticket, those that read most of it."""
