"""Training controls: networks as sparse as the ticket, trained for as long, that lack one thing it has.

What each lacks it says itself, see `evidence.control`. Those that are built in are those of the papers: Frankle &
Carbin (2019, figure 4), Frankle et al. (2019, 2020), Su et al. (2020). Two others ask what the search's many trainings
alone are worth, see `evidence.cyclic`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ticketry.core.budget import mask_cost
from ticketry.core.mask import Mask
from ticketry.errors import UsageError
from ticketry.evidence.comparison_names import CONTROLS, LONGER
from ticketry.evidence.control import Control, Drawing
from ticketry.evidence.control_steps import begins_after, obstacle
from ticketry.evidence.cyclic import train_cycles
from ticketry.evidence.equal_cost import train_dense_of_cost
from ticketry.evidence.mask_form import WEIGHTS, Form
from ticketry.lab.budget_masks import terms_in
from ticketry.lab.lab import Lab
from ticketry.lab.retrain import retraining
from ticketry.lab.search_result import FROM_REWOUND, GRADUAL, Found, Seeds, budget
from ticketry.lab.training.segment import Result, Segment, Start
from ticketry.lab.training.variant import under_mask
from ticketry.records.network import is_matched_dense
from ticketry.tasks.catalogue import untrained
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Task
from ticketry_engine.support.seeds import mix


def stored_control_mask(lab: Lab, task: Task, control: str, ticket: str, seeds: Seeds, form: Form = WEIGHTS) -> str:
    """Digest of the stored mask that a control holds in place of a ticket's stored mask. Remembered.

    Args:
        form: of the ticket's mask, and so of the control's, see `Drawing.form`.

    Raises:
        UsageError: if the control is not known, draws no masks of that form, or draws one that does not fit.
    """
    chosen = CONTROLS.get(control)
    described: dict[str, Any] = {"control": chosen.drawn_as or control, "of": ticket, "seed": seeds.mask}
    if source := CONTROLS.digest_source(control):
        described["source"] = source
    if form == WEIGHTS:
        return lab.remembered_mask(described, lambda: control_mask(control, lab.store.get_mask(ticket), seeds))
    drawing = Drawing(0, form, lambda: lab.model(task), lambda: lab.structure(task))
    if form.aim:
        drawing = replace(drawing, prices=terms_in(lab, task, lab.store.get_mask(ticket), form.aim))
    return lab.remembered_mask(
        {**described, **form.key(), "task": dict(task.key())},
        lambda: _drawn(control, lab.store.get_mask(ticket), seeds, drawing),
    )


def control_mask(control: str, mask: Mask, seeds: Seeds) -> Mask:
    """The mask of single weights that a control holds in place of the ticket's. Pure function of its arguments.

    Raises:
        UsageError: if the control is not known, or draws a mask that does not fit.
    """
    return _drawn(control, mask, seeds, Drawing(0))


def _drawn(control: str, ticket: Mask, seeds: Seeds, drawing: Drawing) -> Mask:
    """The mask of a control with the form of `drawing`."""
    chosen = CONTROLS.get(control)
    if not chosen.changes_mask:
        return ticket
    if drawing.form.kind not in chosen.forms:
        raise UsageError(
            f"the control {control} draws masks of {', '.join(chosen.forms)}, and this ticket's is of"
            f" {drawing.form.kind}: leave it out"
        )
    seed = mix(seeds.mask, chosen.drawn_as or control, ticket.digest)
    mask = chosen.mask(ticket, replace(drawing, seed=seed))
    if drawing.prices is not None and mask.shapes == ticket.shapes:
        if mask_cost(mask, drawing.prices) > mask_cost(ticket, drawing.prices):
            raise UsageError(f"the control {control} makes a mask that costs more than the ticket's")
        return mask
    if mask.shapes != ticket.shapes or (drawing.form == WEIGHTS and mask.kept != ticket.kept):
        raise UsageError(
            f"the control {control} draws a mask of other parameters than the ticket's, or of another density:"
            f" {mask.kept} of {mask.total} weights, not {ticket.kept} of {ticket.total}"
        )
    return mask


def control_start(lab: Lab, control: str, state: str, ticket: str, seeds: Seeds) -> Start:
    """What a control that makes other weights of the ticket's begins with.

    Args:
        state: digest of the stored weights and buffers that the ticket's training begins with.
        ticket: digest of its stored mask.

    Raises:
        UsageError: if the control changes names or shapes.
    """
    before = lab.store.get_tensors(state)
    seed = mix(seeds.mask, control, ticket)
    made = {**before, **CONTROLS.get(control).weights(dict(before), lab.store.get_mask(ticket), seed)}
    for name, value in made.items():
        if name not in before or value.shape != before[name].shape or value.dtype != before[name].dtype:
            raise UsageError(f"the control {control} makes weights {name!r} that the network does not have so")
    return Start(state=lab.store.put_tensors({name: value.contiguous() for name, value in made.items()}))


def train_control(
    lab: Lab, task: Task, recipe: Recipe, control: str, found: Found, seeds: Seeds, label: str = ""
) -> Result:
    """Train a control beside a ticket, for exactly as many steps of the same schedule and data order.

    Where the ticket keeps final weights (rewind_lr, finetune), the control starts from the dense network's: those of
    the level before are 0 wherever that level's mask was. Such a ticket has been trained once at each level so far, and
    so is its control, each time in another order of the data, until it has the ticket's `budget`: the last time, where
    less is left than a whole training, over the end of the schedule alone. So are the weights of
    gradual pruning 0 at its last cut: there the control goes on from the dense network at that step. Where the ticket's
    mask moved while it trained (dynamic), the control's stays: it is trained from step 0, for as many steps as the
    ticket in all. Whatever acts on the ticket while it trains acts on the control too, see `Variant.under`: where the
    ticket is trained without the channels that its mask removes, so is the control, with a mask of whole channels of
    its own; where the rows of the ticket's mask are in groups, or its weights in blocks, so
    are those of the control's, see `stored_control_mask`.
    Those of `names.LONGER` are trained for longer, see `evidence.cyclic`.

    Args:
        lab: where it is trained, with the search in its store.
        task: of the search.
        recipe: that the ticket was searched with. Where a budget made the ticket's own shorter or longer, the control
            has the ticket's.
        control: its name: random_reinit, shuffled, random_prune and others of ``ticketry list controls``.
        found: the ticket.
        seeds: of the replicate that found it.
        label: what to call it in progress events.

    Raises:
        UsageError: for an unknown control, or one that is not defined for this ticket, or cannot have its steps.
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
    return control_trainings(lab, task, recipe, control, found, seeds, label)[-1]


@dataclass(frozen=True)
class Trained:
    """A control, and what was trained for it alone."""

    trainings: list[Result]
    """Each from where the one before it ended."""
    begun: int = 0
    """Training steps in the weights that the first of them begins with."""
    fresh: Result | None = None
    """The dense training that its first weights come from, where the search has it not."""
    searched: bool = True
    """See `Control.searched`."""

    @property
    def budget(self) -> int:
        """Training steps since initialisation that are in its weights."""
        return self.begun + sum(each.segment.steps for each in self.trainings)


def control_trainings(
    lab: Lab, task: Task, recipe: Recipe, control: str, found: Found, seeds: Seeds, label: str = ""
) -> list[Result]:
    """The trainings of `train_control`, each from where the one before it ended."""
    return trained_control(lab, task, recipe, control, found, seeds, label).trainings


def trained_control(
    lab: Lab, task: Task, recipe: Recipe, control: str, found: Found, seeds: Seeds, label: str = ""
) -> Trained:
    """`train_control` with all its trainings; of `records.network.MATCHED_DENSE` too."""
    assert found.mask is not None
    recipe = found.result.segment.recipe  # a budget may have given the ticket a shorter or longer one than the search
    if is_matched_dense(control):
        rival = train_dense_of_cost(lab, task, recipe, control, found, seeds, label=label)
        return Trained([rival], fresh=rival, searched=False)
    ticket = found.mask
    chosen = CONTROLS.get(control)
    mask = ticket
    if chosen.changes_mask:
        mask = stored_control_mask(lab, task, control, ticket, seeds, Form.of_found(found))
    if control in LONGER:
        return Trained(train_cycles(lab, task, recipe, mask, found, seeds, label), found.rewound.segment.last)
    steps = begins_after(found)
    if steps is None:
        raise UsageError(f"the control {control} is not defined for this ticket: {obstacle(control, found)}")
    begun, fresh = _begun(lab, task, chosen, found, steps, seeds, label)
    segment = retraining(
        lab,
        task,
        recipe,
        retrain=found.retrain,
        mask=None,
        rewound=begun if found.retrain in FROM_REWOUND else found.rewound,
        trained=begun,
        order_seed=seeds.order,
        entered=found.result.segment.first if found.retrain == GRADUAL else None,
        variants=under_mask(found.result.segment.variants, mask),
    )
    if chosen.remakes_weights:
        assert segment.start.state is not None
        segment = replace(segment, start=control_start(lab, control, segment.start.state, ticket, seeds))
    return Trained(_until_even(lab, segment, budget(found) - steps, seeds, label), steps, fresh, chosen.searched)


def _begun(
    lab: Lab, task: Task, chosen: Control, found: Found, steps: int, seeds: Seeds, label: str
) -> tuple[Result, Result | None]:
    """The state of `steps` steps that a control begins with, and the dense training that it is from, if the search has
    none."""
    state = found.rewound if found.retrain in FROM_REWOUND else found.dense
    searched = state.segment.last == steps
    if searched and not chosen.fresh:
        return state, None
    dense = lab.segment(
        untrained(task) if chosen.fresh else task,
        start=mix(seeds.initialisation, "random_reinit") if chosen.fresh else seeds.initialisation,
        last=steps,
        order_seed=seeds.order,
        recipe=(state if searched else found.result).segment.recipe,
    )
    trained = lab.train(dense, keep=(steps,), label=f"{label} ({'fresh' if chosen.fresh else 'dense'} start)")
    return lab.at(trained, steps), trained


def _until_even(lab: Lab, segment: Segment, steps: int, seeds: Seeds, label: str) -> list[Result]:
    """Trained, and again from where that ended until there are so many steps; the last time over the end alone."""
    trained, left = [lab.train(segment, label=label)], steps - segment.steps
    while left > 0:
        start, order = Start(state=trained[-1].model), mix(seeds.order, "again", len(trained))
        onward = replace(segment, start=start, order_seed=order, first=max(segment.first, segment.last - left))
        trained.append(lab.train(onward, label=f"{label} (again)"))
        left -= onward.steps
    return trained
