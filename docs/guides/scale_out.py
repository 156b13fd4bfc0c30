"""Training of a saved reversible model on any number of processes; see scale-out.md.

Usage: scale_out.py MODEL TEXT OUTPUT [STEPS [bf16]]
"""

import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, Trainer, TrainingArguments

import revformers as rf


def main(source: str, text: str, output: str, steps: str = "20", precision: str = "float32") -> None:
    """Train the model in the folder `source` on a text file, and save it in the folder `output`."""
    model = rf.from_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    ids = tokenizer(Path(text).read_text(encoding="utf-8"))["input_ids"]
    blocks = [ids[start : start + 64] for start in range(0, len(ids) - 63, 64)]
    arguments = TrainingArguments(
        output,
        per_device_train_batch_size=1,
        max_steps=int(steps),
        bf16=precision == "bf16",
        use_cpu=not torch.accelerator.is_available(),  # without it, processes on CPUs would each train alone
        save_strategy="no",
        report_to="none",
    )
    trainer = Trainer(model, arguments, train_dataset=[{"input_ids": block, "labels": block} for block in blocks])
    trainer.train()
    trainer.save_model(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
