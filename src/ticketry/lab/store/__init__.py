"""The durable store: content-addressed tensors, results by segment key, locks, checkpoints inside segments."""

from ticketry.lab.store.opening import open_store
from ticketry.lab.store.store import FORMAT, NUMERICS, Store, digest_of, tensors_to_bytes

__all__ = ["FORMAT", "NUMERICS", "Store", "digest_of", "open_store", "tensors_to_bytes"]
