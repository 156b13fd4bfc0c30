"""A run of seconds: a two-layer GPT-2 with dropout, so that the random state matters, on a page of text."""

from lab.text import sentences
from revformers.training.recipe import load_recipe

RECIPE = """
model:
  architecture: gpt2
  config: {n_embd: 32, n_layer: 2, n_head: 2, n_positions: 48, resid_pdrop: 0.1}
dynamics: {name: hamiltonian}
data: {source: SOURCE, vocabulary_size: 300, block_length: 32, validation_blocks: 4}
training:
  max_steps: 8
  per_device_train_batch_size: 2
  logging_steps: 2
  eval_steps: 4
  save_steps: 4
  learning_rate: 1e-2
  arguments: {use_cpu: true}
"""


def write_text(path, lines=400):
    path.write_text("".join(sentences(lines)))
    return path


def write_recipe(directory):
    """Write text and a recipe for it into `directory`, and return the path of the recipe."""
    text = write_text(directory / "text.txt")
    path = directory / "tiny.yaml"
    path.write_text(RECIPE.replace("SOURCE", str(text)))
    return path


def tiny_recipe(directory, overrides=None):
    return load_recipe(write_recipe(directory), {"output": str(directory / "run"), **(overrides or {})})
