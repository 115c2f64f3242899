"""Derive structured masks from unstructured masks, and compare the two; the store keeps the results."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map_only

from ticketry.core.mask import Mask
from ticketry.core.structure import coverage, together
from ticketry.core.structure.apply import apply_structuring, channel_score_needs_data
from ticketry.core.structure.structuring import Structuring
from ticketry.lab.costs.ledger import SeenExamples
from ticketry.lab.lab import Lab
from ticketry.lab.scoring_sample import Sample
from ticketry.lab.search_result import Seeds, Structured
from ticketry.lab.store.store import NUMERICS, digest_of
from ticketry.lab.training.segment import Result
from ticketry.lab.training.state import rebuild_model
from ticketry.lab.training.variants import FOLLOWED
from ticketry.tasks.task import Task


def structured_mask(lab: Lab, task: Task, found: Result, mask: str, by: Structuring, seeds: Seeds) -> str:
    """Derive a structured mask from a stored mask, store it, and return its digest; a later call only looks it up.

    Args:
        lab, task: the store and the network.
        found: the result with the weights from which `mask` was computed.
        mask: digest of the unstructured mask.
        by: the structure.
        seeds: the seed `seeds.mask` is used for random choices.
    """
    sample = Sample(seed=seeds.mask) if channel_score_needs_data(by) else None

    def compute_mask() -> Mask:
        course, model, seen = lab.course(task), lab.model(task, found), dict[str, Any]()
        inputs = course.inputs(FOLLOWED)
        if sample is not None:
            model = model.to(lab.arithmetic(task).device)
            inputs = tree_map_only(Tensor, lambda one: one.to(lab.arithmetic(task).device), inputs)
            seen = {"batches": sample.draw(course, model), "loss": course.loss}
        known = lab.structure(task) if by.whole_channels else None
        return apply_structuring(by, model, lab.store.get_mask(mask), inputs, seed=seeds.mask, structure=known, **seen)

    described = {
        "structure": by.describe(),
        "state": found.model,
        "of": mask,
        "task": dict(task.key()),
        "seed": seeds.mask,
        **({"sample": asdict(sample)} if sample else {}),
    }
    seen = SeenExamples.from_settings(sample, lab.sizes(task)["train"], {"score": by.score}) if sample else None
    return lab.load_or_compute_mask(described, compute_mask, seen=seen, ready=lambda: lab.course(task))


def layer_fits(lab: Lab, task: Task, how: Structured, mask: str) -> list[dict[str, Any]]:
    """Return, per layer, how much of the unstructured mask is retained by the structured mask derived from it.

    Args:
        lab, task: the store and the network.
        how: names the unstructured mask and the weights.
        mask: digest of the structured mask.

    Returns:
        For each layer the fields of `structure.LayerFit`, as JSON values; the last entry is for all layers together.
    """
    key = digest_of({"numerics": NUMERICS, "coverage": mask, "of": how.of, "state": how.weights})

    def measure() -> dict[str, Any]:
        model = rebuild_model(task, lab.store.get_tensors(how.weights))
        found = coverage(model, lab.store.get_mask(how.of), lab.store.get_mask(mask), null=how.by.has_null)
        return {"layers": [one.as_json() for one in (*found.values(), together(found))]}

    return list(lab.store.load_or_compute("coverage", key, measure)["layers"])
