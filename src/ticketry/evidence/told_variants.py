"""What acted on a ticket's network while it trained, as its ticket.json tells it, made again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ticketry.core.mask import Mask
from ticketry.core.ticket.ticket import Ticket
from ticketry.errors import TicketError, UsageError
from ticketry.evidence.asked_task import name_of
from ticketry.lab.lab import Lab
from ticketry.lab.training.variant import Variant, is_known, under_mask, variant_from
from ticketry.lab.training.variants import HeldMask, Penalty, Shrunk
from ticketry.records.ticket import RetrainingInfo, read_info
from ticketry.registry import import_from_here, load
from ticketry.tasks.file_requests import refused, shown

_HOLDING = (HeldMask, Shrunk)
_OURS = (*_HOLDING, Penalty)
"""Known here because they are imported."""


def told_variants(lab: Lab, told: RetrainingInfo, mask: Mask, of: str) -> tuple[Variant, ...]:
    """The variants of training that a ticket is trained again with.

    Its mask is in place of the one that it had then: it may have been given a structure since, and then its network may
    be trained without the channels that it removes.

    Args:
        of: what the ticket is called in errors.

    Raises:
        TrustError: for a variant that is not the library's, and whose module nobody has imported.
        TicketError: for one that cannot be made again, or needs what this store does not have.
    """
    digest, holding = lab.store.put_mask(mask), Shrunk if told.segment.shrunk else HeldMask
    made = [_made(each, of) for each in told.segment.variants]
    if not any(one.masked_by() for one in made):
        made.append(holding(mask=digest))
    try:
        found = under_mask(made, digest)
    except UsageError as error:
        raise TicketError(f"{of}: {error}") from None
    for one in found:
        if missing := [blob for blob in one.blobs() if blob != digest and not lab.store.has(blob)]:
            raise TicketError(
                f"{of} was trained with {one.name}, which needs {shown(missing[0])} of the store in which it was found:"
                " verify it there (--store)"
            )
    return tuple(holding(mask=digest) if isinstance(one, _HOLDING) else one for one in found)


def import_variants(ticket: Ticket) -> None:
    """Import whatever modules a ticket names for the variants of its training: its user has allowed it.

    Raises:
        UsageError: if one cannot be imported.
    """
    for each in read_info(RetrainingInfo, ticket.info, name_of(ticket)).segment.variants:
        if "place" in each:
            import_from_here()
            load(str(each["place"]))


def _made(described: Mapping[str, Any], of: str) -> Variant:
    name = described.get("variant")
    if not is_known(described):
        raise refused("variant of training", described.get("place", name), of, "import the module that has it, or, ")
    try:
        return variant_from(described)
    except UsageError as error:
        raise TicketError(f"{of} was trained with {shown(name)}, which cannot be made again: {error}") from None
    except (TypeError, ValueError, KeyError, AttributeError):
        what = f"info.segment.variants tells of {shown(name)} what it has not"
        raise TicketError(f"{of}: in ticket.json, {what}") from None
