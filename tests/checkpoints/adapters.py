"""The bases of adapters, right ones and wrong ones."""

from peft import (
    PeftModel,
)
from transformers import LlamaForCausalLM

import revformers as rf
from tests.tiny_trainers import (
    converted,
    make,
    ordinary,
    saved,
)

BASES = ("memory", "loaded", "converted", "converted and saved")
REFUSED = r"this model is (an ordinary|a reversible) network.*; load both with revformers\.load_adapter"


def base(kind, folder):
    if kind == "converted and saved":
        return rf.from_pretrained(saved(folder / "converted", converted=True))
    return make(kind, folder)


def wrong_base(kind, folder):
    if kind == "other predictors":
        return converted(folder, first=3)
    model = LlamaForCausalLM.from_pretrained(ordinary(folder / "ordinary"))
    return rf.make_reversible(model, rf.Midpoint()) if kind == "other dynamics" else model


def by_peft(model, directory):
    return PeftModel.from_pretrained(model, directory)
