"""The operations of each kind of node of a region, forward and backward, added to a plan."""
