"""What a search yields, looked at before anything is made of it: methods are written by anybody."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ticketry.errors import UsageError
from ticketry.lab.search_result import HOW_TRAINED, Found


def checked(method: str, networks: object) -> Iterator[Found]:
    """The networks that a replicate of a method yields, each looked at as it comes.

    Raises:
        UsageError: naming the method, where these are not the dense network and then tickets of rising levels, each
            trained under the mask that it is said to have; or where there are none.
    """
    if not isinstance(networks, Iterable):
        raise UsageError(
            f"the search method {method} returns a {type(networks).__name__}: its search yields a Found for each"
            " network"
        )
    level = None
    for found in networks:
        if not isinstance(found, Found):
            raise UsageError(
                f"the search method {method} yields a {type(found).__name__}: it yields a ticketry.search.Found for"
                " each network"
            )
        if wrong := _wrong_dense(found) if level is None else _wrong_ticket(found, level):
            raise UsageError(f"the search method {method} yields {wrong}")
        level = found.level
        yield found
    if level is None:
        raise UsageError(f"the search method {method} yields nothing: it yields the dense network, then its tickets")


def _wrong_dense(found: Found) -> str:
    """What is wrong with the network that comes first; empty if nothing is."""
    if found.level != 0 or found.mask is not None or found.result.segment.mask is not None:
        return (
            f"{_said(found)} before the dense network: Found(0, None, …), of a training without a mask, comes first,"
            " for all others are compared with it"
        )
    return _wrong_retrain(found)


def _wrong_ticket(found: Found, before: int) -> str:
    """What is wrong with a network that comes after one of level `before`; empty if nothing is."""
    if found.level <= before:
        return f"{_said(found)} after one of level {before}: the levels of tickets rise from 1 on, one each"
    mask: object = found.mask
    if mask is None:
        return f"a ticket of level {found.level} without a mask: give what lab.store.put_mask(mask) returns"
    if not isinstance(mask, str):
        return (
            f"a ticket of level {found.level} with a {type(mask).__name__} as its mask, which is the digest of"
            " one: give what lab.store.put_mask(mask) returns"
        )
    trained = found.result.segment.mask
    if trained is None:
        return (
            f"a ticket of level {found.level} that was trained without a mask: its result is what"
            " ticketry.lab.retrain.retraining describes, by whatever retrain, or another segment with that mask"
        )
    if trained != mask:
        return (
            f"a ticket of level {found.level} with the mask {mask[:12]} that was trained under another one,"
            f" {trained[:12]}: its mask and its result belong together"
        )
    return _wrong_retrain(found)


def _wrong_retrain(found: Found) -> str:
    if found.retrain in HOW_TRAINED:
        return ""
    return f"{_said(found)} with retrain {found.retrain!r}: it is {', '.join(HOW_TRAINED)}"


def _said(found: Found) -> str:
    return f"a network of level {found.level}"
