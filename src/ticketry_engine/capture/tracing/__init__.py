"""Which operations of torch a model consists of: recorded while it runs without data, or by torch.export."""
