"""Training of one network by several processes (ranks), with DistributedDataParallel or FSDP2."""
