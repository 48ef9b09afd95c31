"""Training on several ranks: processes that each work on a GPU, or on CPU cores, and step together."""
