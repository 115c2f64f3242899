"""One network that several processes train: DistributedDataParallel over ranks that a segment's worker starts."""
