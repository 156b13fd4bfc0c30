"""Text that a model writes itself, for studies of models whose training text is not at hand.

python benchmarks/write_samples.py MODEL --sequences 1000 --seed 0 --output SAMPLES.txt
"""

import argparse
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from revformers.conversion.text import sampled_blocks


def main() -> None:
    """Write one sampled text after the other, each with a line end of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="directory or hub id of a causal language model")
    parser.add_argument("--sequences", type=int, default=1000)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    blocks = sampled_blocks(model, options.sequences, options.length, options.seed)
    texts = tokenizer.batch_decode(blocks, skip_special_tokens=True)
    options.output.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")


if __name__ == "__main__":
    main()
