"""Provide callbacks for trainers of other libraries, which hold a mask, prune gradually, or train gates.

``ticketry.integrations.lightning`` and ``ticketry.integrations.transformers`` both have `HoldCallback`,
`GradualCallback` and `GatesCallback`. Importing one of the two modules requires the library of the same name.
"""
