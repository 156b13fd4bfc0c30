"""A fine-tuning run of seconds: a small Llama with a tokenizer, on disk, and a page of text."""

import json

from revformers.data.tokenizer import train_tokenizer
from revformers.training.finetune_recipe import load_finetune_recipe
from tests.conversion.test_convert import smooth_llama
from tests.training.tiny import write_text

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

RECIPE = """
model: {name: MODEL}
conversion: {bits: 1, sequences: 8}
data: {source: SOURCE, block_length: 32, validation_blocks: 4}
training:
  max_steps: 4
  per_device_train_batch_size: 2
  per_device_eval_batch_size: 4
  learning_rate: 1e-3
  logging_steps: 1
  eval_steps: 2
  save_steps: 2
  arguments: {use_cpu: true}
"""


def write_model(directory, template=TEMPLATE):
    """Write a Llama of six layers and a tokenizer, trained on the text, into `directory`."""
    text = write_text(directory / "text.txt")
    tokenizer = train_tokenizer(text.read_text().splitlines(keepends=True), 300)
    tokenizer.chat_template = template
    model = smooth_llama()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    return directory / "model"


def write_recipe(directory):
    """Write a model, text and a recipe for them into `directory`, and return the path of the recipe."""
    if not (directory / "model").is_dir():
        write_model(directory)
    path = directory / "tiny.yaml"
    text = RECIPE.replace("MODEL", str(directory / "model")).replace("SOURCE", str(directory / "text.txt"))
    path.write_text(text)
    return path


def tiny_finetune_recipe(directory, overrides=None):
    path = write_recipe(directory)
    return load_finetune_recipe(path, {"output": str(directory / "run"), **(overrides or {})})


def write_records(path, records):
    path.write_text(json.dumps(records))
    return path


INSTRUCTIONS = [
    {"instruction": f"Repeat the number {n}.", "input": "twice" if n % 2 else "", "output": f"{n} {n}"}
    for n in range(40)
]
CONVERSATIONS = [
    {
        "messages": [
            {"role": "user", "content": f"count to {n}"},
            {"role": "assistant", "content": "a step " * (n % 4 + 1)},
        ]
    }
    for n in range(40)
]
COLUMNS = {"prompt": "{instruction} {input}\n", "completion": "output"}
