"""Callbacks for trainers of other libraries: hold a mask, prune gradually, train gates.

One file a library, which is needed only where its file is imported: ``ticketry.integrations.lightning`` and
``ticketry.integrations.transformers``. Both have `HoldCallback`, `GradualCallback` and `GatesCallback`.
"""
