import dataclasses

from transformers import TrainingArguments
from transformers.training_args import OptimizerNames
from trl import SFTConfig

from revformers.training.argument_table import ARGUMENTS, FORMER, OPTIMIZERS, PROMPT_ARGUMENTS, TRAINING_ARGUMENTS
from revformers.training.finetune_recipe import FinetuneRecipe
from revformers.training.recipe import Recipe

LATER = {
    "activation_checkpointing",  # transformers 5.24; it is gradient_checkpointing before
    "activation_checkpointing_kwargs",
    "router_aux_loss_coef",  # TRL 1.16
    "trust_remote_code",
}
"""Arguments that the oldest supported releases do not have."""


def names(kind):
    return {field.name for field in dataclasses.fields(kind)}


def test_every_argument_of_the_installed_libraries_is_in_the_table():
    own = names(TrainingArguments)
    assert own - TRAINING_ARGUMENTS.keys() == set(), "say what a recipe does with them"
    assert names(SFTConfig) - own - PROMPT_ARGUMENTS.keys() == set(), "say what a recipe does with them"


def test_the_table_holds_nothing_else():
    own = names(TrainingArguments)
    assert TRAINING_ARGUMENTS.keys() - own - LATER == set()
    assert PROMPT_ARGUMENTS.keys() - (names(SFTConfig) - own) - LATER == set()
    assert FORMER.keys() & ARGUMENTS.keys() == set()
    assert set(OPTIMIZERS) <= {one.value for one in OptimizerNames}


def test_what_to_set_instead_exists():
    """Dotted names in remedies, against the fields of both recipes."""
    fields = set()
    for recipe in (Recipe(), FinetuneRecipe()):
        for section in dataclasses.fields(recipe):
            value = getattr(recipe, section.name)
            inside = dataclasses.fields(value) if dataclasses.is_dataclass(value) else []
            fields |= {section.name, *(f"{section.name}.{field.name}" for field in inside)}
    named = {
        word.strip(",;:")
        for remedy in [*(one.remedy for one in ARGUMENTS.values()), *FORMER.values()]
        for word in remedy.split()
        if word.partition(".")[0] in ("data", "training", "model", "loss", "conversion") and "." in word
    }
    assert len(named) > 20
    assert {name for name in named if not name.startswith("training.arguments.")} - fields == set()
