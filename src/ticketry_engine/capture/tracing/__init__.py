"""Traces a model's torch operations: records calls on the meta device, or runs torch.export."""
