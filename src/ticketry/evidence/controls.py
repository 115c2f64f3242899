"""Training of controls: networks as sparse as a ticket and trained for as long, without one of its properties.

The built-in controls are those of Frankle & Carbin (2019, figure 4), Frankle et al. (2019, 2020) and Su et al. (2020).
Below are three sections: dense networks of a ticket's cost, cyclic training, and all other controls."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from ticketry.budgets.cost_model import CostModel, mask_cost
from ticketry.core.mask import Mask
from ticketry.errors import TaskError, UsageError
from ticketry.evidence.control import (
    CONTROLS,
    LONGER_CONTROLS,
    WEIGHTS,
    Control,
    Drawing,
    MaskForm,
    explain_undefined_control,
    steps_before_control,
)
from ticketry.lab.lab import Lab
from ticketry.lab.masks import (
    dense_macs,
    load_weight_prices,
    measure_dense_latency,
    measure_masked_latency,
    remaining_macs,
)
from ticketry.lab.retrain import retraining
from ticketry.lab.search_result import FROM_REWOUND, GRADUAL, REWINDING, Found, Seeds, search_cost, trained_steps
from ticketry.lab.training.segment import Result, Segment, Start
from ticketry.lab.training.variant import Variant, with_other_mask
from ticketry.records.network import LATENCY_MATCHED, is_matched_dense
from ticketry.step import Step
from ticketry.tasks import catalogue
from ticketry.tasks.catalogue import with_random_weights
from ticketry.tasks.network_name import NetworkName
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Task
from ticketry_engine.support.seeds import mix_seeds


def train_with_scaled_recipe(
    lab: Lab, task: Task, recipe: Recipe, steps: int, seeds: Seeds, *, variants: Sequence[Variant] = (), label: str = ""
) -> Result:
    """Train a network from its initialisation for `steps` steps, with the recipe's schedule scaled to that length."""
    per_epoch = lab.per_epoch(task, recipe)
    if steps != recipe.steps(per_epoch):
        recipe = scale_recipe(recipe, per_epoch, steps)
    segment = lab.segment(task, start=seeds.initialisation, variants=variants, order_seed=seeds.order, recipe=recipe)
    return lab.train(segment, label=label)


def scale_recipe(recipe: Recipe, per_epoch: int, steps: int) -> Recipe:
    """Return the recipe with length, milestones and warm-up scaled to `steps` iterations in all."""
    scale = Fraction(steps, recipe.steps(per_epoch))

    def scale_step(text: str) -> str:
        step = Step.parse(text)
        return text if step.unit == "%" else f"{round(step.iterations(per_epoch=per_epoch) * scale)}it"

    return recipe.changed(
        length=f"{steps}it",
        warmup=scale_step(recipe.warmup),
        milestones=tuple(scale_step(text) for text in recipe.milestones),
    )


HUNDRED = 100
"""Number of widths among which a timed network is chosen; finer differences cannot be resolved by timing."""

STEPS = 1000
"""Number of widths among which a network is chosen by MACs: every width of layers with up to 1,000 filters."""


def narrowest_dense_of_cost(lab: Lab, task: Task, role: str, mask: Mask, terms: str = "") -> Task:
    """Return the task with the narrowest dense network that costs no less than the ticket's masked network.

    The cost is counted MACs, or latency, which is measured and stored. This is the strongest control: the network that
    a user would choose instead of the ticket.

    Args:
        role: a name of `records.network.MATCHED_DENSE`. A colon and a network may follow (``dense_of_flops:vgg-11``);
            by default it is the task's network.
        terms: `Budget.cache_key` of the ticket, which identify the measured latencies.
    """
    own = str(task.key().get("model", ""))
    base = NetworkName.parse(role.partition(":")[2] or own)
    if task.spec is None or not own or base.library:
        raise UsageError(f"{role}: the network of the task {task.name} has no other widths: leave this control out")
    widest = NetworkName.parse(own).width if base.base == NetworkName.parse(own).base else Fraction(1)

    def task_with_width(steps: int) -> Task:
        """Return the task with the network scaled to `steps` / `STEPS` of its full width."""
        assert task.spec is not None
        width = NetworkName.parse(f"{base.base}@{float(widest * steps / STEPS):.6f}").width  # the format of names
        try:
            return catalogue.create_task(replace(task.spec, model=str(NetworkName(base.base, width))))
        except TaskError as error:
            raise UsageError(f"{role}: {error}") from None

    if role.startswith(LATENCY_MATCHED):
        return _narrowest_of_latency(lab, task, role, mask, terms, task_with_width)
    wanted, whole = remaining_macs(lab, task, mask), task_with_width(STEPS)
    if dense_macs(lab, whole) < wanted:
        raise UsageError(
            f"{role}: {whole.key()['model']} takes {dense_macs(lab, whole):,} multiplications, fewer than"
            f" the ticket's {wanted:,}: name a network that is dearer at its full width"
        )
    least = bisect_left(range(1, STEPS), wanted, key=lambda steps: dense_macs(lab, task_with_width(steps))) + 1
    return task_with_width(least)


def _narrowest_of_latency(
    lab: Lab, task: Task, role: str, mask: Mask, terms: str, task_with_width: Callable[[int], Task]
) -> Task:
    """Return the task with the narrowest network (in steps of 1 %) that is no faster than the masked network."""
    costs = load_weight_prices(lab, task, mask, terms) if terms.startswith("time") else None
    if not isinstance(costs, CostModel):
        raise UsageError(f"{role} needs tickets with a latency budget: search with --time, or use dense_of_flops")
    wanted = measure_masked_latency(lab, task, mask, costs)

    def relative_latency(hundredths: int) -> float:
        return measure_dense_latency(lab, task_with_width(hundredths * STEPS // HUNDRED), task, costs).share

    if relative_latency(HUNDRED) < wanted.share:
        raise UsageError(
            f"{role}: even {task_with_width(STEPS).key()['model']} takes only"
            f" {100 * relative_latency(HUNDRED):.1f} % of the dense time, and the ticket {wanted}:"
            " name a network that is slower at its full width"
        )
    least = bisect_left(range(1, HUNDRED), wanted.share, key=relative_latency) + 1
    return task_with_width(least * STEPS // HUNDRED)


def train_cyclic_control(
    lab: Lab, task: Task, recipe: Recipe, mask: str, found: Found, seeds: Seeds, label: str = ""
) -> list[Result]:
    """Train a network with a stored mask repeatedly, about as long as the ticket's whole search; return all results.

    Gadhikar, Nelaturu & Burkholz, "Cyclic Sparse Training: Is it Enough?" (2024, arXiv 2406.02773) ask how much of a
    gain is due to repeated learning rate cycles alone. A cycle is the ticket's own training (steps k..T if the ticket
    continues from final weights). Each cycle continues with the weights of the cycle before, with a new optimiser and
    data order. The first cycle is the training of the ticket (or of the control `shuffled`) itself. These controls have
    more steps than the ticket, so no verdict is based on them.
    """
    at_end = found.rewound.segment.last >= found.result.segment.total
    segment = retraining(
        lab,
        task,
        recipe,
        retrain=found.retrain if found.retrain in REWINDING else "restart" if at_end else "continue",
        mask=None,
        rewound=found.rewound,
        trained=found.rewound,
        order_seed=seeds.order,
        entered=found.result.segment.first if found.retrain == GRADUAL else None,
        variants=with_other_mask(found.result.segment.variants, mask),
    )
    results: list[Result] = []
    count = count_cycles(found, segment.steps)
    for number in range(count):
        if results:
            start = Start(state=results[-1].model)
            segment = replace(segment, start=start, order_seed=mix_seeds(seeds.order, "cycle", number))
        results.append(lab.train(segment, label=f"{label} (cycle {number + 1} of {count})"))
    return results


def count_cycles(found: Found, steps: int) -> int:
    """Return the number of cycles of `steps` steps whose total is nearest to a search's steps after the rewind step."""
    left = search_cost(found) - found.rewound.segment.last
    return max(1, (2 * left + steps) // (2 * steps))


def store_control_mask(lab: Lab, task: Task, control: str, ticket: str, seeds: Seeds, form: MaskForm = WEIGHTS) -> str:
    """Draw and store a control's mask for a ticket's stored mask, and return the new mask's digest (cached).

    `ticket` is the digest of the ticket's mask, and `form` the structure of both masks.
    """
    chosen = CONTROLS.get(control)
    described: dict[str, Any] = {"control": chosen.drawn_as or control, "of": ticket, "seed": seeds.mask}
    if source := CONTROLS.digest_source(control):
        described["source"] = source
    drawing = Drawing(0)
    if form != WEIGHTS:
        described |= {**form.cache_key(), "task": dict(task.key())}
        drawing = Drawing(0, form, lambda: lab.model(task), lambda: lab.structure(task))
        if form.aim:
            drawing = replace(drawing, prices=load_weight_prices(lab, task, lab.store.get_mask(ticket), form.aim))
    return lab.load_or_compute_mask(
        described, lambda: draw_control_mask(control, lab.store.get_mask(ticket), seeds, drawing)
    )


def draw_control_mask(control: str, ticket: Mask, seeds: Seeds, drawing: Drawing | None = None) -> Mask:
    """Draw a control's mask and check that it fits the ticket's mask; `drawing` has another structure than weights."""
    drawing = drawing or Drawing(0)
    chosen = CONTROLS.get(control)
    if not chosen.changes_mask:
        return ticket
    if drawing.form.kind not in chosen.forms:
        raise UsageError(
            f"the control {control} draws masks of {', '.join(chosen.forms)}, but this ticket's mask is of"
            f" {drawing.form.kind}: leave it out"
        )
    seed = mix_seeds(seeds.mask, chosen.drawn_as or control, ticket.digest)
    mask = chosen.mask(ticket, replace(drawing, seed=seed))
    if drawing.prices is not None and mask.shapes == ticket.shapes:
        if mask_cost(mask, drawing.prices) > mask_cost(ticket, drawing.prices):
            raise UsageError(f"the control {control} draws a mask that costs more than the ticket's")
        return mask
    if mask.shapes != ticket.shapes or (drawing.form == WEIGHTS and mask.kept != ticket.kept):
        raise UsageError(
            f"the control {control} draws a mask of other parameters than the ticket's, or of another density:"
            f" {mask.kept} of {mask.total} weights, not {ticket.kept} of {ticket.total}"
        )
    return mask


def make_control_start(lab: Lab, control: str, state: str, ticket: str, seeds: Seeds) -> Start:
    """Compute a control's initial weights from the ticket's, store them, and return them as a start of training.

    `state` is the digest of the ticket's stored initial weights (with buffers), `ticket` the digest of its mask.
    """
    before = lab.store.get_tensors(state)
    seed = mix_seeds(seeds.mask, control, ticket)
    made = {**before, **CONTROLS.get(control).weights(dict(before), lab.store.get_mask(ticket), seed)}
    for name, value in made.items():
        if name not in before or value.shape != before[name].shape or value.dtype != before[name].dtype:
            raise UsageError(
                f"the control {control} returns weights {name!r} that the network lacks, or has in another shape"
            )
    return Start(state=lab.store.put_tensors({name: value.contiguous() for name, value in made.items()}))


def train_control(
    lab: Lab, task: Task, recipe: Recipe, control: str, found: Found, seeds: Seeds, label: str = ""
) -> Result:
    """Train a control for exactly as many steps as its ticket, with the same schedule and data order.

    - Ticket that continues from final weights (rewind_lr, finetune): the control starts from the dense network and is
      trained repeatedly, in different data orders, until it has the ticket's number of steps. The last training may
      cover only the end of the schedule.
    - Ticket of gradual pruning: the control continues from the dense network at the last pruning step.
    - Ticket with a dynamic mask: the control has a fixed mask and is trained from step 0 for the ticket's total steps.
    - Variants of the ticket's training also apply to the control (`Variant.under`), and both masks have the same
      structure.
    - `LONGER_CONTROLS` are trained for longer, see `train_cyclic_control`.

    Args:
        lab, task, recipe, seeds: those of the search that found the ticket. If a budget changed the ticket's recipe,
            the ticket's is used instead.
        control: random_reinit, shuffled, random_prune or another of ``ticketry list controls``.
        found: the ticket.
        label: name in progress events.

    Raises:
        UsageError: if the control is unknown, not defined for this ticket, or cannot have the ticket's number of steps.
        TrainingError: if a loss is no longer a number.

    Examples:
        >>> task, recipe = tk.task("digits"), tk.Recipe(length="20it", batch=32, lr=0.05)
        >>> settings = tk.search.iterative.Settings(levels=1)
        >>> with tk.Lab() as lab:
        ...     dense, ticket = tk.search.iterative(lab, task, settings, recipe=recipe)[0]
        ...     control = tk.evidence.train_control(lab, task, recipe, "shuffled", ticket, tk.search.Seeds())
        ...     made, found = lab.store.get_mask(control.segment.mask), lab.store.get_mask(ticket.mask)
        >>> made.kept == found.kept, made == found
        (True, False)
    """
    return train_any_control(lab, task, control, found, seeds, label).trainings[-1]


@dataclass(frozen=True)
class ControlTrainings:
    """The trainings of a control, without the trainings that are part of the ticket's search."""

    trainings: list[Result]
    """The trainings in order; each continues the previous one."""
    steps_before: int = 0
    """Number of steps for which the initial weights of the first training had been trained."""
    fresh: Result | None = None
    """Dense training of the initial weights, if it was done for this control alone; else None."""
    searched: bool = True
    """Whether the search counts as part of the control's cost, see `Control.searched`."""

    @property
    def total_steps(self) -> int:
        """Number of training steps since initialisation."""
        return self.steps_before + sum(each.segment.steps for each in self.trainings)


def train_any_control(
    lab: Lab, task: Task, control: str, found: Found, seeds: Seeds, label: str = ""
) -> ControlTrainings:
    """Train a control (see `train_control`) or a dense network of the ticket's cost; return all its trainings.

    A dense network of the ticket's cost (`records.network.MATCHED_DENSE`) is trained from its initialisation for the
    ticket's total number of steps.
    """
    assert found.mask is not None
    recipe = found.result.segment.recipe  # a budget may have changed that of the search
    ticket = mask = found.mask
    if is_matched_dense(control):
        rival = narrowest_dense_of_cost(lab, task, control, lab.store.get_mask(ticket), found.aim)
        trained = train_with_scaled_recipe(lab, rival, recipe, trained_steps(found), seeds, label=label)
        return ControlTrainings([trained], fresh=trained, searched=False)
    chosen = CONTROLS.get(control)
    if chosen.changes_mask:
        mask = store_control_mask(lab, task, control, ticket, seeds, MaskForm.from_found(found))
    if control in LONGER_CONTROLS:
        return ControlTrainings(
            train_cyclic_control(lab, task, recipe, mask, found, seeds, label), found.rewound.segment.last
        )
    steps = steps_before_control(found)
    if steps is None:
        raise UsageError(
            f"the control {control} is not defined for this ticket: {explain_undefined_control(control, found)}"
        )
    start, fresh = _train_to_start_of_control(lab, task, chosen, found, steps, seeds, label)
    segment = retraining(
        lab,
        task,
        recipe,
        retrain=found.retrain,
        mask=None,
        rewound=start if found.retrain in FROM_REWOUND else found.rewound,
        trained=start,
        order_seed=seeds.order,
        entered=found.result.segment.first if found.retrain == GRADUAL else None,
        variants=with_other_mask(found.result.segment.variants, mask),
    )
    if chosen.remakes_weights:
        assert segment.start.state is not None
        segment = replace(segment, start=make_control_start(lab, control, segment.start.state, ticket, seeds))
    return ControlTrainings(
        _train_segment_repeatedly(lab, segment, trained_steps(found) - steps, seeds, label),
        steps,
        fresh,
        chosen.searched,
    )


def _train_to_start_of_control(
    lab: Lab, task: Task, chosen: Control, found: Found, steps: int, seeds: Seeds, label: str
) -> tuple[Result, Result | None]:
    """Return (state from which a control starts, after `steps` dense steps; its training if it is new, else None)."""
    state = found.rewound if found.retrain in FROM_REWOUND else found.dense
    searched = state.segment.last == steps
    if searched and not chosen.fresh:
        return state, None
    dense = lab.segment(
        with_random_weights(task) if chosen.fresh else task,
        start=mix_seeds(seeds.initialisation, "random_reinit") if chosen.fresh else seeds.initialisation,
        last=steps,
        order_seed=seeds.order,
        recipe=(state if searched else found.result).segment.recipe,
    )
    trained = lab.train(dense, keep=(steps,), label=f"{label} ({'fresh' if chosen.fresh else 'dense'} start)")
    return lab.at(trained, steps), trained


def _train_segment_repeatedly(lab: Lab, segment: Segment, steps: int, seeds: Seeds, label: str) -> list[Result]:
    """Train a `segment` of a schedule repeatedly, `steps` steps in all; the last training may cover only its end."""
    trained, left = [lab.train(segment, label=label)], steps - segment.steps
    while left > 0:
        start, order = Start(state=trained[-1].model), mix_seeds(seeds.order, "again", len(trained))
        onward = replace(segment, start=start, order_seed=order, first=max(segment.first, segment.last - left))
        trained.append(lab.train(onward, label=f"{label} (again)"))
        left -= onward.steps
    return trained
