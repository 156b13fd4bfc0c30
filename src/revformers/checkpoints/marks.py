"""The marks in the config.json of a saved reversible model, and names of folders; see `model_config`."""

MODEL_TYPE = "reversible (pip install revformers, then import revformers)"
WEIGHTS_NOTE = "this is a reversible model: pip install revformers, then revformers.from_pretrained"
KEY = "revformers"
PREFIX = "Reversible"
"""Prefix of the class name in `architectures`, so that loaders that look the class up in transformers (TRL) do not find
it, and use the auto class."""

MODEL_OF_RUN = "model"
ADAPTER_OF_RUN = "adapter"
"""The folders of a run directory that hold the model and the adapter; see `revformers.training.run_directory`."""
