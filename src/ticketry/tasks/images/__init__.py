"""Image classification: data sets in memory (`task`), and folders and shards that are read on demand (`folder`)."""
