"""What the config.json of a saved reversible model is marked with; see `revformers.checkpoints.model_config`."""

MODEL_TYPE = "reversible (pip install revformers, then import revformers)"
WEIGHTS_NOTE = "this is a reversible model: pip install revformers, then revformers.from_pretrained"
KEY = "revformers"
PREFIX = "Reversible"
"""Stands before the class name in `architectures`: loaders that look for a class of that name in transformers find
none, and take the auto class (TRL)."""
