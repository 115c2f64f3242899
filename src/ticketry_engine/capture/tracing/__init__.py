"""Traces a model's torch operations, by recording a call without data or by torch.export."""
