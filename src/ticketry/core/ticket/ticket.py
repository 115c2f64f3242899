"""A ticket: a mask, the weights from which the masked network is trained, and information about both."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ticketry.core.mask import Mask, from_bytes, require_mask, to_bytes
from ticketry.core.sharding import reshard
from ticketry.core.tables import format_layer_lines, html_table
from ticketry.core.ticket import folder as files
from ticketry.core.ticket import hub, state_dicts
from ticketry.core.ticket.folder import any_sharded, to_json_values, write_folder_from_all_ranks
from ticketry.errors import MaskError, TicketError, UsageError
from ticketry_engine.support.entry_points import Need, allow_in_place_write, entry_point


class Ticket:
    """A sparse sub-network that can be saved, shared and trained.

    Attributes:
        mask: the mask of the sub-network.
        start: state dict (weights and buffers) of the rewind step, from which the ticket is trained.
        trained: state dict after training, with removed weights exactly 0; None if the ticket was not trained.
        info: plain JSON values. `describe` and the model card show these entries: method, settings, seeds, metric,
            value, level, replicate, parameters (number of all parameters of the model) and license.
        path: the folder that the ticket was read from; None for a new ticket.

    Tensors are copies on the CPU; sharded tensors stay sharded on their devices. Names have no prefixes of wrappers. A
    tied tensor is stored under all its names.

    Examples:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        >>> ticket = tk.Ticket(tk.prune(model, 0.25), start=model.state_dict(), info={"method": "one-shot"})
        >>> folder = ticket.save("my-ticket")
        >>> again = tk.Ticket.load(folder)
        >>> again.density, again.mask == ticket.mask
        (0.25, True)
        >>> again.apply(model)[0].weight.count_nonzero() + model[2].weight.count_nonzero()
        tensor(32)
        >>> again.is_as_written(folder), tk.Ticket.is_saved(folder, {"method": "another"})
        (True, False)
        >>> print(again.describe().splitlines()[0])
        method:    one-shot
        >>> again.apply(model, "trained")
        Traceback (most recent call last):
            ...
        ticketry.errors.TicketError: this ticket has not been trained: apply its start, and train it
    """

    @entry_point()
    def __init__(
        self,
        mask: Mask,
        start: Mapping[str, Tensor],
        info: Mapping[str, Any],
        trained: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Create a ticket; all tensors are copied.

        Raises:
            UsageError: if the mask is not a `Mask`, a state is not a state dict, or `info` is not a mapping.
            TicketError: if mask, `start` and `trained` differ in names or shapes, if a state dict contains anything but
                dense tensors, or if `info` has values that JSON cannot hold.

        There is a warning (`UserWarning`) if `start` has the trained weights: then the state dict was taken before
        training, but not copied.
        """
        self._set_contents(mask, start, info, trained)
        if trained is not None and self.trained is not None:
            state_dicts.warn_of_same_weights(start, trained, self.start, self.trained, self.mask)

    def _set_contents(
        self, mask: Mask, start: Mapping[str, Tensor], info: Mapping[str, Any], trained: Mapping[str, Tensor] | None
    ) -> None:
        """Check mask, state dicts and info, and store copies of them."""
        self.path: Path | None = None
        require_mask(mask)
        _require_mapping("start", start, "a state dict, such as model.state_dict() gives early in training")
        _require_mapping("info", info, 'a dict of plain values, such as {"method": "one-shot"}')
        if trained is not None:
            _require_mapping("trained", trained, "a state dict, such as model.state_dict() gives after training")
        self.mask = mask.to("cpu")
        self.start = state_dicts.copy_state(start, "start")
        self.info: dict[str, Any] = to_json_values(dict(info), "info")
        state_dicts.require_masked_tensors(self.mask, self.start)
        self.trained: dict[str, Tensor] | None = None
        if trained is not None:
            state = state_dicts.copy_state(trained, "trained")
            state_dicts.require_same_shapes(self.start, state)
            self.trained = state_dicts.mask_state(state, self.mask)

    @property
    def density(self) -> float:
        """Fraction of the weights in scope that the mask retains."""
        return self.mask.density

    def describe(self) -> str:
        """Return the method, density, metric, seeds and table of layers as plain text."""
        facts = hub.list_ticket_properties(self.mask, self.info, self.trained is not None)
        rows = (f"{label + ':':<10} {text}" for label, text in facts)
        return "\n".join([*rows, "", *format_layer_lines(self.mask.table())])

    def __repr__(self) -> str:
        return f"Ticket({self.mask!r}, {'trained' if self.trained is not None else 'not trained'})"

    def _repr_html_(self) -> str:
        facts = hub.list_ticket_properties(self.mask, self.info, self.trained is not None)
        return html_table("Ticket", (), facts) + self.mask._repr_html_()

    # -- a model -------------------------------------------------------------------------------------------------------

    @entry_point(Need(python=False, floats=False))
    def apply(self, model: nn.Module, which: str = "start") -> nn.Module:
        """Load the ticket's weights and buffers into `model`, set removed weights to exactly 0, and return the model.

        Args:
            model: any module with the ticket's parameters and buffers; it may be wrapped (data-parallel, compiled). A
                model that does not fit is not changed.
            which: ``start`` (the weights before training) or ``trained`` (the weights after training).

        Raises:
            TicketError: if `model` has other tensors or shapes than the ticket; if `model` ties two tensors that differ
                in the ticket; or if `which` is ``trained`` and the ticket has no trained weights.
        """
        if which not in ("start", "trained"):
            raise TicketError(f"a ticket has the states start and trained, not {which!r}")
        state = self.start if which == "start" else self.trained
        if state is None:
            raise TicketError("this ticket has not been trained: apply its start, and train it")
        reshard(model)
        try:
            self.mask.parameters(model)
        except MaskError as error:
            raise TicketError(f"the ticket does not fit the model: {error}") from None
        filled = state_dicts.match_state_to_model(model, state)
        first = next(iter(model.state_dict().values()))
        try:
            with allow_in_place_write(first):
                state_dicts.load_state(model, filled)
        except RuntimeError as error:
            raise TicketError(f"the ticket does not fit the model: {error}") from None
        return self.mask.apply_(model)

    # -- a folder ------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the ticket to a folder, completely or not at all, and return its path.

        Equal tickets give equal bytes. A folder at `path` is left unchanged if it contains this ticket, and replaced if
        it contains another ticket and nothing else. A ticket with sharded tensors (`fully_shard`) is saved by all
        processes together: rank 0 writes, and one tensor at a time is gathered.

        Raises:
            TicketError: if `path` has other files, or the folder cannot be written (disk full, no permission).
        """
        states = {files.START: self.start} | ({} if self.trained is None else {files.MODEL: self.trained})
        if any_sharded(*states.values()):
            payloads: list[tuple[str, Callable[[], bytes] | Mapping[str, Tensor]]]
            payloads = [(files.MASK, partial(to_bytes, self.mask)), *states.items()]
            return write_folder_from_all_ranks(path, payloads, self._build_manifest)
        contents = ((name, state_dicts.state_to_bytes(state)) for name, state in states.items())
        return files.write_folder(path, chain([(files.MASK, to_bytes(self.mask))], contents), self._build_manifest)

    @staticmethod
    def is_saved(path: str | Path, info: Mapping[str, Any]) -> bool:
        """Return whether an undamaged ticket with exactly this info is at `path`."""
        folder = Path(path)
        try:
            manifest, facts = files.read_manifest(folder, folder)
            for name, fact in facts.items():
                files.read_file(folder, folder, name, fact)
        except TicketError:
            return False
        return bool(manifest.get("info") == json.loads(json.dumps(to_json_values(dict(info), "info"))))

    def is_as_written(self, path: str | Path) -> bool:
        """Return whether the ticket.json at `path`, from which this ticket was read, is what `save` would write."""
        folder = Path(path)
        _, facts = files.read_manifest(folder, folder)
        written = {name: facts[name] for name in files.FILES if name in facts}  # in the order of `save`
        return files.read_checked_file(folder, folder, files.MANIFEST) == self._build_manifest(written)

    @classmethod
    def load(cls, path: str | Path, *, trained: bool = True) -> Ticket:
        """Read a ticket from a folder. Sizes and digests are checked before files are parsed; pickle is not used.

        Args:
            path: path of the folder. Links that lead out of the folder are refused; for a repository of the hub, whose
                cache has such links, use `from_hub`.
            trained: whether to read the trained weights too, if the ticket has any.

        Raises:
            TicketError: if the ticket is missing, incomplete, damaged, malicious or written by a newer ticketry.
        """
        return cls._load(Path(path), Path(path), trained=trained)

    @classmethod
    def _load(cls, folder: Path, root: Path, *, trained: bool) -> Ticket:
        manifest, facts = files.read_manifest(folder, root)
        info = manifest.get("info")
        if not isinstance(info, dict):
            raise TicketError(f"{folder / files.MANIFEST} has no info: the ticket is damaged")
        try:
            mask = from_bytes(files.read_file(folder, root, files.MASK, facts[files.MASK]))
        except MaskError as error:
            raise TicketError(f"{folder / files.MASK} holds no mask: {error}") from None
        states = {
            name: state_dicts.state_from_bytes(files.read_file(folder, root, name, facts[name]), folder / name)
            for name in (files.START, files.MODEL)
            if name in facts and (trained or name == files.START)
        }
        ticket = cls.__new__(cls)
        ticket._set_contents(mask, states[files.START], info, states.get(files.MODEL))
        for key, value in ticket._summarise_counts().items():
            if manifest.get(key) != value:
                raise TicketError(f"{folder / files.MANIFEST} is damaged: its {key} is not that of the mask")
        ticket.path = folder
        return ticket

    def _build_manifest(self, facts: Mapping[str, files.FileFact]) -> bytes:
        manifest = {
            "kind": files.KIND,
            "format": files.FORMAT,
            "info": self.info,
            **self._summarise_counts(),
            "files": {name: {"size": fact.size, "sha256": fact.sha256} for name, fact in facts.items()},
        }
        return files.build_manifest_with_digest(manifest)

    def _summarise_counts(self) -> dict[str, Any]:
        """Return the numbers of weights and the densities that `save` writes to ticket.json and `load` compares."""
        return {
            "density": self.mask.density,
            "sparsity": self.mask.sparsity,
            "counts": {
                "kept": self.mask.kept,
                "prunable": self.mask.total,
                "parameters": self.info.get("parameters"),
                "state": sum(tensor.numel() for tensor in self.start.values()),
            },
            "layers": [
                {"name": row.name, "shape": list(row.shape), "kept": row.kept, "total": row.total}
                for row in self.mask.table()
            ],
        }

    # -- the hub -------------------------------------------------------------------------------------------------------

    @classmethod
    def from_hub(
        cls,
        repo_id: str,
        *,
        revision: str | None = None,
        endpoint: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
    ) -> Ticket:
        """Download a ticket from a model repository of the Hugging Face hub, through the hub's cache.

        The hub's client shows progress on standard error, unless HF_HUB_DISABLE_PROGRESS_BARS is set.

        Args:
            repo_id: ``user/name``.
            revision: branch, tag or commit; by default ``main``.
            endpoint, token, cache_dir: see huggingface_hub, whose environment variables apply too.

        Raises:
            MissingExtraError: without huggingface_hub.
            TicketError: if the repository cannot be downloaded, or has no valid ticket.
        """
        folder, root = hub.download(repo_id, revision=revision, endpoint=endpoint, token=token, cache_dir=cache_dir)
        return cls._load(folder, root, trained=True)

    def push(
        self,
        repo_id: str,
        *,
        private: bool = False,
        endpoint: str | None = None,
        token: str | bool | None = None,
        message: str = "Upload a ticket",
        verdict: str = "",
        figure: bytes | None = None,
        model: nn.Module | None = None,
    ) -> str:
        """Upload the ticket and a model card to a repository of the Hugging Face hub; return the repository's URL.

        This makes one commit. A missing repository is created. An existing ticket and README.md are replaced, and other
        files stay. A repository that has weights but no ticket is refused. `Run.push` adds `verdict` and `figure`.

        Args:
            repo_id: ``user/name``.
            private, endpoint, token: see huggingface_hub, whose environment variables apply too.
            message: message of the commit.
            verdict: a sentence for the card that says whether the ticket wins.
            figure: the bytes of a PNG image for the card.
            model: a model of transformers or timm, with the ticket's tensors. The loaders of these libraries
                (``AutoModel.from_pretrained("user/name")``, ``timm.create_model("hf-hub:user/name")``) can then load
                the trained weights from the repository.

        Raises:
            MissingExtraError: without huggingface_hub.
            TicketError: if the hub refuses or cannot be reached; if `model` is from another library or does not fit the
                ticket; or if `model` is given and the ticket has no trained weights.
        """
        if any_sharded(self.start, self.trained):
            raise TicketError(
                "this ticket's states lie in parts on several devices: save it, and push what Ticket.load reads"
            )
        image = hub.FIGURE if figure else ""
        card = hub.model_card(self.mask, self.info, self.trained is not None, repo_id, verdict=verdict, figure=image)
        beside = {hub.CARD: card.encode()} | ({hub.FIGURE: figure} if figure else {})
        if model is not None:
            if self.trained is None:
                raise TicketError("this ticket has not been trained: other libraries' loaders would find no weights")
            state_dicts.match_state_to_model(model, self.trained)
            beside[hub.CONFIG] = hub.export_config(model)
        return hub.upload(repo_id, self.save, beside, private=private, endpoint=endpoint, token=token, message=message)


def _require_mapping(name: str, given: object, what: str) -> None:
    """Raise `UsageError` if the value `given` of the argument `name` is not a mapping."""
    if not isinstance(given, Mapping):
        raise UsageError(f"{name}= is {what}, not a {type(given).__name__}")
