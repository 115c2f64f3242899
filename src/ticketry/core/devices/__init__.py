"""Training on several devices: pruning of sharded parameters, and batch norms synchronised over processes."""

from ticketry.core.devices.norms import SynchronisedBatchNorm, synchronise_norms

__all__ = ["SynchronisedBatchNorm", "synchronise_norms"]
