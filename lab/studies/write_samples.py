"""Samples text from a model, for studies of models whose training text is not available.

python -m lab.studies.write_samples MODEL --sequences 1000 --seed 0 --output SAMPLES.txt
"""

import argparse

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lab.bench.environment import output_file
from lab.command import as_command
from revformers.files import write_text


def sampled_blocks(model: PreTrainedModel, sequences: int, length: int) -> Tensor:
    """Return int64[sequences, length] of tokens that `model` writes from its beginning-of-sequence token."""
    start = torch.full((sequences, 1), model.config.bos_token_id, device=model.device)
    tokens: Tensor = model.generate(
        start,
        attention_mask=torch.ones_like(start),
        max_length=length,
        min_length=length,
        max_new_tokens=None,
        do_sample=True,
        top_k=0,
        pad_token_id=0,
    )
    return tokens


def main() -> None:
    """Write the sampled texts one after the other, each followed by a line end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="directory or hub id of a causal language model")
    parser.add_argument("--sequences", type=int, default=1000)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=output_file, required=True)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    torch.manual_seed(options.seed)
    blocks = sampled_blocks(model, options.sequences, options.length)
    texts = tokenizer.batch_decode(blocks, skip_special_tokens=True)
    write_text(options.output, "".join(f"{text}\n" for text in texts))


if __name__ == "__main__":
    as_command(main)
