"""Pruning for any PyTorch training loop: scopes, scores, masks, mask enforcement, channel pruning and tickets."""
