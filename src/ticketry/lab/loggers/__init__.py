"""Where what is trained is told, besides the store: one file a library."""
