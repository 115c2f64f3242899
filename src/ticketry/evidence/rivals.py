"""Rivals: dense networks and controls that a ticket or a procedure is compared with after equally long training.

A procedure is a search method with its settings and recipe; each of its seeds repeats the whole search.
`load_tested_ticket` restores all that testing a ticket needs from its folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

import torch
from msgspec import convert, structs

from ticketry.budgets.pruner import random_mask_of_equal_cost
from ticketry.core.mask import Mask
from ticketry.core.scope import name_without_wrappers, named_parameters
from ticketry.core.structure.controls import random_mask
from ticketry.core.structure.pattern import Pattern
from ticketry.core.ticket.state_dicts import match_state_to_model
from ticketry.core.ticket.ticket import Ticket
from ticketry.errors import MaskError, TaskError, TicketError, UsageError
from ticketry.evidence.control import (
    CONTROLS,
    PROCEDURE_RIVALS,
    RIVALS,
    SMALL_DENSE,
    STATIC_MASKS,
    STRUCTURED_RIVALS,
    WEIGHTS,
    MaskForm,
    check_rivals,
    explain_undefined_control,
)
from ticketry.evidence.controls import (
    make_control_start,
    narrowest_dense_of_cost,
    store_control_mask,
    train_any_control,
    train_with_scaled_recipe,
)
from ticketry.evidence.settings import VerifySettings
from ticketry.lab.costs.ledger import training_phases_of
from ticketry.lab.costs.meters import FlopsByWeight, forward_flops, removed_shares
from ticketry.lab.lab import Lab
from ticketry.lab.masks import load_weight_prices
from ticketry.lab.search_result import GRADUAL, REWINDING, Found, Seeds, trained_steps
from ticketry.lab.store.store import digest_of
from ticketry.lab.training.segment import Result, Start
from ticketry.lab.training.variant import (
    Variant,
    explain_mask_dependence,
    is_known,
    variant_from_description,
    with_other_mask,
)
from ticketry.lab.training.variants import HeldMask, Penalty, Shrunk
from ticketry.records.evidence import Reference
from ticketry.records.network import MATCHED_DENSE, is_matched_dense
from ticketry.records.ticket import RetrainingInfo, TaskInfo, TaskRequest, TicketTask, read_ticket_info
from ticketry.registry import load_object, put_current_folder_on_path
from ticketry.tasks import catalogue
from ticketry.tasks.file_requests import is_widened, quote, untrusted_request_error
from ticketry.tasks.recipe import Recipe, recipe_from_dict
from ticketry.tasks.task import Spec, Task, json_key
from ticketry_engine.support.process_state import private_random_state
from ticketry_engine.support.seeds import mix_seeds


def list_references(subject: TestedTicket) -> list[Reference]:
    """List two dense networks with other steps, without values, which are shown beside a verdict but do not affect it.

    They have as many steps as the whole search (if recorded), and as many FLOPs as the ticket.
    """
    made = []
    spent, once = subject.info.get("search_steps"), subject.total_steps
    if spent:
        note = (
            f"the {spent:,} steps that the search had trained when the ticket was found, {spent / once:.1f} trainings"
        )
        made.append(Reference("dense_at_cost", int(spent), note=note))
    share = compute_flops_share(subject.lab, subject.task, subject.mask)
    own = subject.last - subject.first
    steps = max(1, subject.step + round(share * own))
    note = (
        f"as many operations as the ticket's training needs if zeros are free: {100 * share:.1f} % of the dense"
        f" network's over {own:,} steps{f', after {subject.step:,} dense ones' if subject.step else ''}"
    )
    return [*made, Reference("dense_at_flops", steps, note=note)]


def compute_flops_share(lab: Lab, task: Task, mask: Mask) -> float:
    """Return a masked network's FLOPs as a share of the dense network's FLOPs, cached in the store.

    FLOPs are counted in a forward pass of one example, see `lab.costs.meters`. Products with masked weights count
    in proportion to the weights' density, products with other weights in full, biases and norms not at all.
    """
    key = digest_of({"flops": 2, "task": dict(task.key())})
    known = lab.store.load_memo("flops", key)
    if known is None:
        model, inputs = lab.model(task).eval(), lab.course(task).inputs(1)
        arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        found = forward_flops(named_parameters(model), lambda: model(*arguments))
        known = {"dense": found.dense, "products": [[list(names), flops] for names, flops in found.products.items()]}
        lab.store.put_memo("flops", key, known)
    by_weight = FlopsByWeight(known["dense"], {tuple(names): flops for names, flops in known["products"]})
    return by_weight.left(removed_shares(mask)) / by_weight.dense if by_weight.dense else 1.0


Search = Callable[[Lab, Task, Recipe, Any, Seeds], Iterator[Found]]
"""Function that searches one replicate: it yields the dense network, then each ticket."""


@dataclass(frozen=True)
class RepeatedSearch:
    """Result of repeating a procedure's whole search once, from its own seeds."""

    task: Task
    seeds: Seeds
    dense: Found
    ticket: Found
    mask: Mask
    cost: int
    """Number of training steps of all trainings that the ticket needed, see `lab.costs.ledger`."""

    @property
    def total_steps(self) -> int:
        """Number of steps for which the ticket's weights were trained."""
        return trained_steps(self.ticket)

    @property
    def mask_form(self) -> MaskForm:
        return MaskForm.from_found(self.ticket)


@dataclass(frozen=True)
class Procedure:
    """A search with everything that determines its results: method, settings, recipe and seeds.

    To judge a procedure, the whole search is repeated. Every replicate has its own initialisation, data order and
    search, so that replicates share no randomness.

    Examples:
        >>> iterative, task = tk.search.iterative, tk.task("digits")
        >>> what = {"settings": iterative.Settings(levels=1), "recipe": tk.Recipe(length="20it"), "level": 1}
        >>> what["seeds"] = tk.search.Seeds()
        >>> with tk.Lab() as lab:
        ...     procedure = tk.evidence.Procedure(lab, iterative.search, lambda _: task, **what)
        ...     found = procedure.replicate(0)
        >>> procedure.task.name, found.ticket.level, found.seeds == procedure.fresh_seeds(0)
        ('digits', 1, True)
    """

    lab: Lab
    """The lab that runs the searches."""
    search: Search
    """The method's function `search`."""
    task_of: Callable[[int], Task]
    """Function that returns the task of the replicate with a given number."""
    settings: Any
    """Settings of the method."""
    recipe: Recipe
    """Recipe of the searches."""
    level: int | None
    """Level of the judged ticket; None for the last ticket of each search."""
    seeds: Seeds
    """Seeds of the run's first replicate, from which fresh seeds are derived."""
    bounded: bool = False
    """Whether the settings limit the whole search to the cost of one dense training by the recipe."""
    after: int = 0
    """Number of fresh seeds to skip; `VerifySettings.after` replaces it."""

    @property
    def task(self) -> Task:
        return self.task_of(0)

    def fresh_seeds(self, number: int) -> Seeds:
        """Return seeds that no run has used, for repetition `number` from 0.

        They are the same for all methods and settings, so that these share dense networks.
        """
        own = self.seeds
        return Seeds.of(mix_seeds(own.initialisation, own.order, own.mask, "procedure", self.after + number))

    def replicate(self, number: int) -> RepeatedSearch:
        """Repeat the search from the fresh seeds of repetition `number`, up to the level of the judged ticket.

        Raise `UsageError` if the search finds no ticket of that level.
        """
        task, seeds, found = self.task_of(self.after + number), self.fresh_seeds(number), []
        for one in self.search(self.lab, task, self.recipe, self.settings, seeds):
            found.append(one)
            if one.level == self.level:
                break
        *before, ticket = found
        if ticket.mask is None or ticket.level != (self.level or ticket.level):
            raise UsageError(
                f"seed number {number + 1}: the search found {len(found) - 1} tickets, none of level {self.level}, so"
                " its procedure cannot be judged at that level"
            )
        mask = self.lab.store.get_mask(ticket.mask)
        return RepeatedSearch(task, seeds, found[0], ticket, mask, training_phases_of(ticket, before).steps)


@dataclass(frozen=True)
class TrainedNetwork:
    """A network trained with one seed: its result and its number of steps."""

    result: Result
    total_steps: int
    """Number of training steps since initialisation."""


class Rivals:
    """Train a ticket and its rivals (the dense network and controls), one seed at a time.

    All networks are trained over the same steps of one schedule; the networks of one seed have the same data order. The
    dense network and most controls start with the ticket's initial weights. Controls with fresh weights are first
    trained densely up to the rewind step. Changes to the ticket's training, such as a penalty, also apply to its
    controls, but not to dense networks.
    """

    roles_with_other_steps: tuple[str, ...] = ()
    """Roles whose networks may have another number of steps than the ticket; always empty here."""

    def __init__(self, subject: TestedTicket, settings: VerifySettings) -> None:
        """Check the names of the controls."""
        controls = settings.rivals((*RIVALS, MATCHED_DENSE[0]) if subject.form.aim else RIVALS)
        check_rivals(controls)
        self.subject, self.lab, self.task = subject, subject.lab, subject.task
        self.left_out: dict[str, str] = {}
        """Control that is undefined for this ticket -> reason."""
        self._dense_tasks: dict[str, Task] = {}
        """Role of a dense network of another size -> task with that network."""
        if SMALL_DENSE in controls:
            if small := make_narrower_task(self.task, subject.remaining_parameters):
                self._dense_tasks[SMALL_DENSE] = small
            else:
                self.left_out[SMALL_DENSE] = explain_no_narrower(self.task, subject.remaining_parameters)
        for name in filter(is_matched_dense, controls):
            self._dense_tasks[name] = narrowest_dense_of_cost(self.lab, self.task, name, subject.mask, subject.form.aim)
        self.controls = tuple(name for name in controls if name not in self.left_out)
        self.roles = ("ticket", "dense", *self.controls)

    def train_all_roles(self, number: int) -> dict[str, TrainedNetwork]:
        """Train the ticket, the dense network and the controls with one seed, or load them; return them by role."""
        seeds = self.subject.fresh_seeds(number)
        return dict(
            zip(
                self.roles, self.lab.gather([partial(self.train_role, role, seeds) for role in self.roles]), strict=True
            )
        )

    def keys_of_shared_dense_networks(self) -> list[str] | None:
        """Return None: a verdict about one ticket treats seeds as independent, even if they share a dense network."""
        return None

    def train_references(self, count: int) -> list[Reference]:
        """Train each reference (a dense network with other steps) with `count` seeds; return them with their values."""
        shown, metric = list_references(self.subject), self.task.metric.name

        def train_reference(reference: Reference, seeds: Seeds) -> float:
            with self.lab.telling("reference "):
                steps, recipe = reference.steps or 0, self.subject.recipe
                trained = train_with_scaled_recipe(self.lab, self.task, recipe, steps, seeds, label=reference.role)
                return float(trained.metrics["test"][metric])

        begun = self.subject.seeds.initialisation  # the dense networks have the ticket's
        seeds = [replace(self.subject.fresh_seeds(number), initialisation=begun) for number in range(count)]
        values = self.lab.gather([partial(train_reference, reference, each) for reference in shown for each in seeds])
        return [
            structs.replace(reference, values=tuple(values[index * count : (index + 1) * count]))
            for index, reference in enumerate(shown)
        ]

    def train_role(self, role: str, seeds: Seeds) -> TrainedNetwork:
        """Train the network of one role with the given seeds, or load it from the store."""
        subject, lab = self.subject, self.subject.lab
        task, mask, start = subject.task, subject.mask_digest if role != "dense" else None, Start(state=subject.start)
        if role in self._dense_tasks:
            task, mask = self._dense_tasks[role], None
            start = self._train_fresh_start(task, seeds, role)
        elif role in self.controls:
            control = CONTROLS.get(role)
            if control.changes_mask:
                mask = store_control_mask(lab, task, role, subject.mask_digest, seeds, subject.form)
            if control.fresh:
                start = self._train_fresh_start(task, seeds, role)
            if control.remakes_weights:
                assert start.state is not None
                start = make_control_start(lab, role, start.state, subject.mask_digest, seeds)
        segment = lab.segment(
            task,
            start=start,
            first=subject.first,
            last=subject.last,
            order_seed=seeds.order,
            recipe=subject.recipe,
            variants=() if mask is None else with_other_mask(subject.variants, mask),
        )
        return TrainedNetwork(lab.train(segment, label=role), subject.step + segment.steps)

    def count_parameters(self, role: str) -> int:
        """Return the number of parameters of a role's network that are not pruned."""
        if role == "dense":
            return self.subject.parameters
        if role in self._dense_tasks:
            return sum(value.numel() for value in self.subject.lab.model(self._dense_tasks[role]).parameters())
        return self.subject.remaining_parameters

    def network_name(self, role: str) -> str:
        """Return the name of a role's network, such as ``resnet-20``."""
        task = self._dense_tasks.get(role, self.subject.task)
        return str(task.key().get("model", ""))

    def _train_fresh_start(self, task: Task, seeds: Seeds, role: str) -> Start:
        """Initialise a role's network afresh, train it densely up to the rewind step, and return this start."""
        lab, subject = self.subject.lab, self.subject
        seed = mix_seeds(seeds.initialisation, "random_reinit")
        begun = catalogue.with_random_weights(task)
        if subject.step == 0 and begun is task:
            return Start(seed=seed)
        segment = lab.segment(begun, start=seed, last=subject.step, order_seed=seeds.order, recipe=subject.recipe)
        return Start(state=lab.train(segment, label=f"{role} (fresh start)").model)


def make_narrower_task(task: Task, most: int) -> Task | None:
    """Return the task with its widest network of at most `most` parameters; None if there is no such network."""
    model = task.narrower(most) if task.spec else None
    return catalogue.create_task(replace(task.spec, model=model)) if task.spec and model else None


def explain_no_narrower(task: Task, most: int) -> str:
    """Return the error message for ``small_dense`` if the task has no network of at most `most` parameters."""
    network = task.key().get("model", "its network")
    return f"the task {task.name} defines no narrower form of {network} with at most {most:,} parameters"


class ProcedureRivals:
    """Repeat a procedure (a whole search) and train its rivals, one seed at a time.

    - ``dense``: the dense network from the same initialisation, trained for as many steps as the ticket's weights.
    - Controls of a ticket, such as ``shuffled``, are trained like the ticket after its mask was chosen.
    - ``uniform``, ``erk``: a random mask, fixed from the initialisation on; otherwise trained like the ticket.
    - ``small_dense``: a narrower network with no more parameters than the ticket.
    """

    def __init__(self, procedure: Procedure, settings: VerifySettings) -> None:
        """Check the names of the controls."""
        check_rivals(settings.rivals(()), (*RIVALS, *STATIC_MASKS))
        self.subject, self.lab = procedure, procedure.lab
        self.left_out: dict[str, str] = {}
        """Control that is undefined for at least one seed, and thus left out for all seeds -> reason."""
        self.replicates: dict[int, RepeatedSearch] = {}
        """Number of the seed -> the repeated search."""
        self._settings = settings

    @property
    def task(self) -> Task:
        return self.subject.task

    @property
    def roles_with_other_steps(self) -> tuple[str, ...]:
        """Roles whose networks may have another number of steps than the tickets."""
        return ("dense",) if self.subject.bounded or self._settings.dense_at == "cost" else ()

    def train_all_roles(self, number: int) -> dict[str, TrainedNetwork]:
        """Repeat the search with one seed, and train or load the networks of all roles; return them by role."""
        one = self.replicates[number] = self.subject.replicate(number)
        suited = PROCEDURE_RIVALS if one.mask_form.kind == WEIGHTS.kind else STRUCTURED_RIVALS
        asked = [role for role in self._settings.rivals(suited) if role not in self.left_out]
        self.left_out |= {role: why for role in asked if (why := self._explain_undefined_control(role, one))}
        roles = ("ticket", "dense", *(role for role in asked if role not in self.left_out))
        return dict(zip(roles, self.lab.gather([partial(self._train_role, role, one) for role in roles]), strict=True))

    def keys_of_shared_dense_networks(self) -> list[str] | None:
        """Return the key of each seed's dense network if seeds share one, as when the task ignores seeds; else None."""
        keys = [one.dense.result.segment.key for _, one in sorted(self.replicates.items())]
        return keys if len(set(keys)) < len(keys) else None

    def count_parameters(self, role: str) -> int:
        """Return the mean over seeds of the number of unpruned parameters of a role's network."""
        return round(fmean(self._count_parameters(role, one) for one in self.replicates.values()))

    def network_name(self, role: str) -> str:
        """Return the name of the network that `role` has with the first seed."""
        return str(self._task_of_role(role, self.replicates[0]).key().get("model", ""))

    @property
    def kept_weights(self) -> int:
        """Mean over seeds of the number of weights that the ticket's mask retains."""
        return round(fmean(one.mask.kept for one in self.replicates.values()))

    @property
    def weights_in_scope(self) -> int:
        """Number of weights that masks cover, whether retained or removed."""
        return self.replicates[0].mask.total

    def train_references(self, count: int) -> list[Reference]:
        """Return up to two references with their values: dense networks with the steps of the recipe or whole search.

        The latter is trained with `count` seeds. A reference with as many steps as the judged dense network is omitted.
        """
        first, shown = self.replicates[0], list[Reference]()

        def test_values(results: Iterable[Result]) -> tuple[float, ...]:
            return tuple(float(one.metrics["test"][self.task.metric.name]) for one in results)

        judged, planned = self._count_dense_steps(first), first.dense.result.segment.steps
        if judged != planned:
            values = test_values(one.dense.result for _, one in sorted(self.replicates.items()))
            shown.append(Reference("dense_by_recipe", planned, values, "one training by the recipe, with every seed"))
        if not self.subject.bounded and first.cost not in (judged, planned):  # a budget equals the cost of the recipe
            note = f"the {first.cost:,} steps of the whole search, {first.cost / planned:.1f} trainings by the recipe"
            role, repeated = "dense_at_cost", [self.replicates[number] for number in range(count)]
            pieces = [partial(self._train_from_initialisation, one, first.cost, role, one.task) for one in repeated]
            shown.append(Reference(role, first.cost, test_values(self.lab.gather(pieces)), note))
        return shown

    # -- one seed ------------------------------------------------------------------------------------------------------

    def _explain_undefined_control(self, role: str, one: RepeatedSearch) -> str:
        if role in STATIC_MASKS:
            if one.mask_form.kind != WEIGHTS.kind:
                return f"draws masks of single weights, but these are of {one.mask_form.kind}"
            return explain_mask_dependence(one.ticket.result.segment.variants)
        if role == SMALL_DENSE:
            return (
                "" if self._narrower_task(one) else explain_no_narrower(one.task, self._count_parameters("ticket", one))
            )
        return explain_undefined_control(role, one.ticket)

    def _train_role(self, role: str, one: RepeatedSearch) -> TrainedNetwork:
        if role == "ticket":
            return TrainedNetwork(one.ticket.result, one.total_steps)
        steps, task, variants = one.total_steps, one.task, tuple[Variant, ...]()
        if role == "dense":
            steps = self._count_dense_steps(one)
        elif role in STATIC_MASKS:
            seed = mix_seeds(one.seeds.mask, role)
            if one.mask_form.aim:
                prices = load_weight_prices(self.lab, one.task, one.mask, one.mask_form.aim)
                mask = random_mask_of_equal_cost(one.mask, prices, seed, role)
            else:
                mask = random_mask(one.mask, seed, role)
            variants = with_other_mask(one.ticket.result.segment.variants, self.lab.store.put_mask(mask))
        elif role == SMALL_DENSE or is_matched_dense(role):
            task = self._task_of_role(role, one)
        else:  # a control of the ticket, trained repeatedly if the ticket was trained at each level
            made = train_any_control(self.lab, one.task, role, one.ticket, one.seeds, label=role)
            return TrainedNetwork(made.trainings[-1], made.total_steps)
        return TrainedNetwork(self._train_from_initialisation(one, steps, role, task, variants), steps)

    def _count_dense_steps(self, one: RepeatedSearch) -> int:
        if self.subject.bounded:
            return one.dense.result.segment.steps
        return one.cost if self._settings.dense_at == "cost" else one.total_steps

    def _train_from_initialisation(
        self, one: RepeatedSearch, steps: int, label: str, task: Task, variants: Sequence[Variant] = ()
    ) -> Result:
        recipe = self.subject.recipe
        return train_with_scaled_recipe(self.lab, task, recipe, steps, one.seeds, variants=variants, label=label)

    def _task_of_role(self, role: str, one: RepeatedSearch) -> Task:
        if is_matched_dense(role):
            return narrowest_dense_of_cost(self.lab, one.task, role, one.mask, one.mask_form.aim)
        found = self._narrower_task(one) if role == SMALL_DENSE else one.task
        assert found is not None
        return found

    def _narrower_task(self, one: RepeatedSearch) -> Task | None:
        return make_narrower_task(one.task, self._count_parameters("ticket", one))

    def _count_parameters(self, role: str, one: RepeatedSearch) -> int:
        everything = sum(
            value.numel() for value in named_parameters(self.lab.model(self._task_of_role(role, one))).values()
        )
        if role in ("dense", SMALL_DENSE) or is_matched_dense(role):
            return everything
        return everything - one.mask.total + one.mask.kept


def ticket_name_for_errors(ticket: Ticket) -> str:
    """Return how error messages name a ticket: by its folder, or "this ticket" if it has no folder."""
    return str(ticket.path or "this ticket")


def read_task_description(ticket: Ticket) -> TicketTask | None:
    """Read the description of a ticket's task; return None if the ticket has no such description."""
    return read_ticket_info(TaskInfo, ticket.info, ticket_name_for_errors(ticket)).task


def build_task(ticket: Ticket, *, request: TaskRequest | None = None, trust: bool = False) -> Task:
    """Build a ticket's task from the description in the ticket.

    Args:
        request: description to use instead of the ticket's own.
        trust: whether the user trusts everything that the ticket names, see `tasks.file_requests`. If False, the shapes
            of a large network are checked before memory is allocated.
    """
    of, asked = ticket_name_for_errors(ticket), read_task_description(ticket)
    if asked is None:
        raise TicketError(f"{of} does not contain its task, from which its model is built: name it with --task")
    model = asked.key.get("model")
    request = request or asked.spec
    spec = (
        Spec(request.name, request.model, tuple(sorted(request.options.items())))
        if request
        else Spec(asked.name, model if isinstance(model, str) else None)  # tickets from before specs
    )
    try:
        task = catalogue.create_task(spec, file=of, trust=trust)
    except (TaskError, UsageError) as error:
        raise TicketError(f"the task {asked.name!r:.80} of {of} cannot be built: {error}") from None
    if not trust and is_widened(spec.model):
        _require_same_shapes(task, ticket)
    return task


def _require_same_shapes(task: Task, ticket: Ticket) -> None:
    of = ticket_name_for_errors(ticket)
    try:
        with private_random_state([]), torch.device("meta"):
            own = task.build().state_dict()
    except RuntimeError as error:
        raise TicketError(f"the network that {of} names cannot be built: {str(error).splitlines()[0]:.120}") from None
    shapes = {name_without_wrappers(name): tuple(tensor.shape) for name, tensor in own.items()}
    for name, tensor in ticket.start.items():
        if shapes.get(name) != tuple(tensor.shape):
            found = shapes.get(name, "none")
            raise TicketError(
                f"{of} does not fit the network {task.key().get('model', task.name)} that it names: {name!r:.80} has"
                f" the shape {tuple(tensor.shape)}, not {found}"
            )


_HOLDING = (HeldMask, Shrunk)
_REGISTERED = (*_HOLDING, Penalty)
"""Variants that `restore_variants` can find by name, because importing their classes registers them."""


def restore_variants(lab: Lab, info: RetrainingInfo, mask: Mask, of: str) -> tuple[Variant, ...]:
    """Return the training variants (mask, penalty, …) with which a ticket was trained, adapted to its current mask.

    If pruned channels were physically removed before training, they are removed here too.
    """
    digest, holding = lab.store.put_mask(mask), Shrunk if info.segment.shrunk else HeldMask
    made = [_restore_variant(each, of) for each in info.segment.variants]
    if not any(one.masked_by() for one in made):
        made.append(holding(mask=digest))
    try:
        found = with_other_mask(made, digest)
    except UsageError as error:
        raise TicketError(f"{of}: {error}") from None
    for one in found:
        if missing := [blob for blob in one.blobs() if blob != digest and not lab.store.has(blob)]:
            raise TicketError(
                f"{of} was trained with {one.name}, which needs {quote(missing[0])} from the store of its search:"
                " verify it there (--store)"
            )
    return tuple(holding(mask=digest) if isinstance(one, _HOLDING) else one for one in found)


def import_variants(ticket: Ticket) -> None:
    """Import the modules of custom variants that a ticket names; call this only if the user trusts the ticket."""
    for each in read_ticket_info(RetrainingInfo, ticket.info, ticket_name_for_errors(ticket)).segment.variants:
        if "place" in each:
            put_current_folder_on_path()
            load_object(str(each["place"]))


def _restore_variant(described: Mapping[str, Any], of: str) -> Variant:
    name = described.get("variant")
    if not is_known(described):
        raise untrusted_request_error(
            "variant of training", described.get("place", name), of, "import its module, or, "
        )
    try:
        return variant_from_description(described)
    except UsageError as error:
        raise TicketError(f"{of} was trained with {quote(name)}, which cannot be restored: {error}") from None
    except (TypeError, ValueError, KeyError, AttributeError):
        what = f"info.segment.variants has invalid fields for {quote(name)}"
        raise TicketError(f"{of}: in ticket.json, {what}") from None


_NEEDED = ("task", "recipe", "seeds", "segment", "retrain", "rewind_step")


@dataclass(frozen=True)
class TestedTicket:
    """A ticket with everything that is needed to train it and its controls again in a lab."""

    lab: Lab
    task: Task
    recipe: Recipe
    mask: Mask
    mask_digest: str
    start: str
    """Digest of the stored state, before masking, from which the ticket's training starts."""
    step: int
    """The rewind step k: number of steps for which the state `start` was trained."""
    first: int
    """First step of the schedule at which the ticket's training begins."""
    last: int
    seeds: Seeds
    """Seeds of the replicate that found the ticket."""
    info: Mapping[str, Any]
    parameters: int
    """Number of parameters of the dense network."""
    variants: tuple[Variant, ...]
    """Variants of the ticket's training: its mask, and variants that the method added."""
    form: MaskForm = WEIGHTS
    """Structure of the ticket's mask, which the masks of controls must also have."""
    after: int = 0
    """Number of fresh seeds to skip, see `VerifySettings.after`."""

    @property
    def remaining_parameters(self) -> int:
        """Number of unpruned parameters: weights that the mask retains, and all parameters that it does not cover."""
        return self.parameters - self.mask.total + self.mask.kept

    @property
    def total_steps(self) -> int:
        """Number of steps from the initialisation to the end of the ticket's training."""
        return self.step + self.last - self.first

    def fresh_seeds(self, number: int, purpose: str = "verify") -> Seeds:
        """Return the seeds of repetition `number`, which no search has used; another `purpose` gives other seeds."""
        return Seeds.of(mix_seeds(self.seeds.order, purpose, self.after + number))


def load_tested_ticket(lab: Lab, ticket: Ticket, task: Task | None = None) -> TestedTicket:
    """Prepare a ticket for testing, and check that it fits its task.

    Args:
        ticket: a ticket that was rewound (retrain ``continue`` or ``restart``) or pruned before any training.
        task: the task; required only if it cannot be built from its name.

    Raises:
        TicketError: if the ticket lacks data about its training, or belongs to another model or task.
        TrustError: if the ticket names a task or network that is not built in or a path of this machine, or was trained
            with a variant whose module is not imported.
        UsageError: if the ticket continued from trained weights, so that it has no initial state to train from again.
    """
    info, of = ticket.info, ticket_name_for_errors(ticket)
    missing = [name for name in _NEEDED if name not in info]
    if missing:
        raise TicketError(
            f"this ticket lacks its {', '.join(missing)}, so it cannot be trained again: verify tickets that a search"
            " has saved, or judge your own numbers with evidence.verdict"
        )
    training = read_ticket_info(RetrainingInfo, info, of)
    if not trains_after_pruning_only(training):
        raise UsageError(
            f"this ticket keeps trained weights (retrain {training.retrain:.40}), so no dense network or control has"
            " its start and its budget: verify its procedure, the whole search (--about procedure), or tickets of"
            " retrain continue or restart"
        )
    recipe, form = recipe_from_dict(training.recipe), _mask_form_of_ticket(training, ticket.mask, of)
    task = task or build_task(ticket)
    require_same_task(task, training.task)
    model = lab.model(task)
    try:
        ticket.mask.parameters(model)
        match_state_to_model(model, ticket.start)
    except (MaskError, TicketError) as error:
        network = task.key().get("model", task.name)
        raise TicketError(f"the ticket does not fit the network {network}: {error}") from None
    total = recipe.steps(lab.per_epoch(task, recipe))
    for name, step in (("segment.last", training.segment.last), ("rewind_step", training.rewind_step)):
        if step > total:
            raise TicketError(
                f"{of}: in ticket.json, info.{name} is {step:,}, but the ticket's recipe has {total:,} steps"
            )
    return TestedTicket(
        lab=lab,
        task=task,
        recipe=recipe,
        mask=ticket.mask,
        mask_digest=lab.store.put_mask(ticket.mask),
        start=lab.store.put_tensors(ticket.start),
        step=training.rewind_step,
        first=training.segment.first,
        last=training.segment.last,
        seeds=convert(structs.asdict(training.seeds), Seeds),
        info=info,
        parameters=sum(value.numel() for value in named_parameters(model).values()),
        variants=restore_variants(lab, training, ticket.mask, of),
        form=form,
    )


def _mask_form_of_ticket(training: RetrainingInfo, mask: Mask, of: str) -> MaskForm:
    """Return the structure of the ticket's mask; raise `TicketError` if it has groups larger than any layer."""
    pattern = Pattern.parse(training.mask_pattern)
    form = MaskForm.from_structure(
        training.structure.kind, shrunk=training.segment.shrunk, pattern=str(pattern), aim=training.aim
    )
    largest = max((size for shape in mask.shapes.values() for size in shape), default=0)
    if max(form.m, pattern.m, pattern.rows) > max(largest, 1):
        raise TicketError(
            f"{of}: in ticket.json, a pattern has groups of more rows or inputs than any layer ({largest})"
        )
    return form


def trains_after_pruning_only(info: RetrainingInfo) -> bool:
    """Return whether a ticket was trained only after pruning, from rewound weights or from step 0."""
    return info.retrain in REWINDING or (info.retrain == GRADUAL and info.rewind_step == info.segment.first == 0)


def require_same_task(task: Task, asked: TicketTask) -> None:
    """Raise `TicketError` unless `asked`, the task that the ticket was found on, is the same as `task`."""
    own, written = json_key(task), asked.key
    if own == written:
        return
    differing = sorted(name for name in own.keys() | written.keys() if own.get(name) != written.get(name))
    differences = ", ".join(
        f"{name:.40} {str(written.get(name))[:60]!r} (here {str(own.get(name))[:60]!r})" for name in differing
    )
    raise TicketError(f"the ticket has another task or network: its {differences}")
