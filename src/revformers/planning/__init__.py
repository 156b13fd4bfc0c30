"""How much memory training takes, computed from a model's configuration alone."""
