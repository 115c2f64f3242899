"""Where distributions come from: SciPy, which the library for one's own loop does without."""

from __future__ import annotations

from typing import Any

from ticketry.errors import needs


def special() -> Any:
    """`scipy.special`, with the distribution functions of Student, the normal and the beta, and their inverses.

    `scipy.stats` takes several times as long to import.
    """
    needs("scipy", "lab", "a verdict")
    import scipy.special

    return scipy.special
