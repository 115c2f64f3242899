"""Callbacks for trainers of other libraries: hold a mask, prune gradually, or train gates.

``ticketry.integrations.lightning`` and ``ticketry.integrations.transformers`` both have `HoldCallback`,
`GradualCallback` and `GatesCallback`. Each module needs its library only when it is imported.
"""
