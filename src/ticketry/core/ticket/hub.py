"""Tickets on the Hugging Face hub: their files, a model card, and a config for the loaders of other libraries."""

from __future__ import annotations

import copy
import importlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ticketry.core.mask import Mask
from ticketry.core.tables import one_line
from ticketry.core.ticket.folder import FILES, MANIFEST
from ticketry.errors import MissingExtraError, TicketError
from ticketry.version import __version__

CARD = "README.md"
FIGURE = "figure.png"
CONFIG = "config.json"
"""Name of the file that loaders of transformers and timm read besides ``model.safetensors``."""


def download(
    repo_id: str, *, revision: str | None, endpoint: str | None, token: str | bool | None, cache_dir: str | Path | None
) -> tuple[Path, Path]:
    """Download the files of a ticket, and no others, into the hub's cache.

    Returns:
        The folder with the files, and the cache folder of this repository; the files are links inside the latter.
    """
    hub = _import_hub("fetching a ticket from the hub")
    try:
        folder = hub.snapshot_download(
            repo_id,
            revision=revision,
            endpoint=endpoint,
            token=token,
            cache_dir=cache_dir,
            allow_patterns=[*FILES, CARD],
            library_name="ticketry",
            library_version=__version__,
        )
    except Exception as error:  # the hub's client has no common base of its errors
        raise _explain_hub_error(error, f"the ticket {repo_id!r} cannot be fetched") from error
    return Path(folder), Path(folder).parents[1]


def upload(
    repo_id: str,
    save: Callable[[Path], Path],
    beside: Mapping[str, bytes],
    *,
    private: bool,
    endpoint: str | None,
    token: str | bool | None,
    message: str,
) -> str:
    """Upload a ticket and its model card to a repository in one commit; return the repository's URL.

    Args:
        save: function that writes the ticket to a folder and returns the folder's path.
        beside: contents of further files by name: the model card, a figure, a model's config.
    """
    hub = _import_hub("pushing a ticket to the hub")
    try:
        with tempfile.TemporaryDirectory(prefix="ticketry-") as folder:
            path = save(Path(folder) / "ticket")
            for name, data in beside.items():
                (path / name).write_bytes(data)
            api = hub.HfApi(endpoint=endpoint, token=token, library_name="ticketry", library_version=__version__)
            url = str(api.create_repo(repo_id, private=private, exist_ok=True))
            there = set(api.list_repo_files(repo_id))
            if MANIFEST not in there and there & set(FILES):
                raise TicketError(f"the repository {repo_id!r} holds weights that are not a ticket's: choose another")
            names = sorted(entry.name for entry in path.iterdir())
            changes = [hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=path / name) for name in names]
            # An untrained ticket that replaces a trained one must not leave the old weights.
            changes += [hub.CommitOperationDelete(path_in_repo=name) for name in FILES if name in there - set(names)]
            api.create_commit(repo_id, changes, commit_message=message)
    except TicketError:
        raise
    except Exception as error:  # as in `download`
        raise _explain_hub_error(error, f"the ticket cannot be pushed to {repo_id!r}") from error
    return url


def export_config(model: nn.Module) -> bytes:
    """Return the content of the ``config.json`` from which transformers or timm can build this model."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_json_string"):  # transformers
        if not getattr(config, "architectures", None):  # loaders need the class
            config = copy.deepcopy(config)
            config.architectures = [type(model).__name__]
        return str(config.to_json_string()).encode()
    if isinstance(getattr(model, "pretrained_cfg", None), Mapping):
        save_config_for_hf = importlib.import_module("timm.models._hub").save_config_for_hf  # as in timm's own push
        with tempfile.TemporaryDirectory(prefix="ticketry-") as folder:
            file = Path(folder) / CONFIG
            save_config_for_hf(model, str(file))
            return file.read_bytes()
    raise TicketError(
        f"{type(model).__name__} is no model of transformers or timm, the libraries whose loaders are known:"
        " leave model= away"
    )


def _import_hub(purpose: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise MissingExtraError("huggingface_hub", "hub", purpose) from None
    return huggingface_hub


def _explain_hub_error(error: Exception, what: str) -> TicketError:
    """Return a `TicketError`, with advice, for an error of the hub's client; `what` says what was tried."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, errors.RevisionNotFoundError):
        advice = "there is no such revision: name a branch, a tag or a commit of the repository"
    elif isinstance(error, errors.RepositoryNotFoundError):
        advice = (
            "there is no such repository, or it is private: check the name, and log in (hf auth login) or give token="
        )
    elif status in (401, 403):
        advice = "the token does not allow it: log in (hf auth login) or give token= of a user who may"
    elif status is not None:
        advice = f"the hub answered {status}: {first}"
    # By name, because versions of the hub's client use different HTTP libraries.
    elif isinstance(error, (errors.LocalEntryNotFoundError, ConnectionError)) or "TransportError" in (
        kind.__name__ for kind in type(error).__mro__
    ):
        advice = "the hub cannot be reached: check the network, the endpoint and HF_HUB_OFFLINE, and try again"
    elif isinstance(error, errors.HFValidationError):
        advice = f"{first}: a repository is called user/name"
    else:
        advice = f"{first} ({type(error).__name__})"
    return TicketError(f"{what}: {advice}")


def model_card(
    mask: Mask, info: Mapping[str, Any], trained: bool, repo_id: str, *, verdict: str = "", figure: str = ""
) -> str:
    """Return the README.md of a ticket's repository: the hub's metadata, a table of facts, and how to load the ticket.

    `verdict` is a sentence that says whether the ticket wins, and `figure` the name of an image file.
    """
    licence = info.get("license")
    head = ["library_name: ticketry", "tags:", *(f"- {tag}" for tag in _TAGS)]
    if isinstance(licence, str):
        head.append(f"license: {json.dumps(licence)}")
    table = "\n".join(
        f"| {label} | {_escape_table_cell(text)} |" for label, text in list_ticket_properties(mask, info, trained)
    )
    which = "trained" if trained else "start"
    claim = f"\n## Does it win?\n\n{_escape_table_cell(one_line(verdict))}\n" if verdict else ""
    image = f"\n![The metric by the share of weights kept]({figure})\n" if figure else ""
    return _CARD.format(head="\n".join(head), table=table, repo_id=repo_id, which=which, verdict=claim + image)


_TAGS = ("pytorch", "lottery-ticket", "pruning", "sparsity")

_CARD = """---
{head}
---

# A lottery ticket

A sparse sub-network of a PyTorch model, found with ticketry.

| | |
|---|---|
{table}
{verdict}
```python
import ticketry as tk

ticket = tk.Ticket.from_hub("{repo_id}")
model = ticket.apply(model, "{which}")
```

`model` is the plain dense model. `start` are the weights that the ticket's training starts from, `trained` those
after it; removed weights are 0. The mask itself is `ticket.mask`.
"""


def list_ticket_properties(mask: Mask, info: Mapping[str, Any], trained: bool) -> list[tuple[str, str]]:
    """Return the facts about a ticket, except the table of layers, as pairs (label, text)."""
    facts = [("method", _format_value(info.get("method", "not said")))]
    facts += [(key, _format_value(info[key])) for key in ("level", "replicate") if key in info]
    facts.append(("density", f"{mask.density:.4g} ({mask.kept:,} of {mask.total:,} prunable weights kept)"))
    facts.append(("sparsity", f"{mask.sparsity:.4g}"))
    parameters = info.get("parameters")
    if isinstance(parameters, int) and parameters >= mask.total > 0:
        left = parameters - mask.total + mask.kept
        facts.append(("of all", f"{left / parameters:.4g} ({left:,} of {parameters:,} parameters kept)"))
    if "value" in info:
        facts.append(("metric", f"{_format_value(info.get('metric', 'value'))} {_format_value(info['value'])}"))
    facts += [(key, _format_value(info[key])) for key in ("seeds", "settings") if key in info]
    facts.append(("trained", "yes" if trained else "no"))
    return facts


def _format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return one_line(value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False))


def _escape_table_cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
