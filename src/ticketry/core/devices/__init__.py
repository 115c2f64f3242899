"""Models that several devices train: parameters in parts (DTensor), pruned and saved without being gathered; norms over
the batches of all processes."""

from ticketry.core.devices.norms import SynchronisedBatchNorm, synchronise_norms

__all__ = ["SynchronisedBatchNorm", "synchronise_norms"]
