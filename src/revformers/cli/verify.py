"""``revformers verify MODEL_OR_RECIPE``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from revformers.cli.dynamics_option import parse_dynamics
from revformers.cli.exit_codes import CHECK_FAILED
from revformers.cli.help_text import wrapped_report
from revformers.cli.model_input import move, random_tokens, sequence_length, set_seed
from revformers.cli.options import read_options
from revformers.errors import UserError, as_user_error

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEFAULT_LENGTH = 128


@dataclass(frozen=True)
class VerifyOptions:
    """Compare the gradients of rebuilt activations with those of stored ones, on a batch of random tokens.

    Attributes:
        model: A recipe (.yaml), or a directory, hub id or GGUF file of a causal language model.
        dynamics: Recurrence of the model, such as midpoint or hamiltonian; options follow a colon, as in
            blended_midpoint:blend=1/4. An ordinary model needs one; that of a reversible model is replaced.
        states: Format of the states, such as int32, int64 or auto:14; by default that of the model or the recipe.
        dtype: Type of the weights; by default that of the saved model or the recipe.
        device: Device to compare on, such as cuda.
        batch_size: Sequences in the batch.
        length: Tokens in a sequence; by default 128, or the model's maximum if that is smaller.
        seed: Seed of the tokens and of dropout.

    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    dynamics: str | None = None
    states: str | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    device: str = "cpu"
    batch_size: int = 2
    length: int | None = None
    seed: int = 0


def run(arguments: Sequence[str]) -> int:
    """Print the comparison and return 0 if the gradients agree to the bit, otherwise 1.

    Raises:
        FileNotFoundError: for a missing recipe or directory.
        UserError: for an ordinary model without --dynamics, dynamics without an inverse, states in no known format, a
            batch that the model cannot read, or a loss that is not finite.
        NotReversibleError: for a model that cannot be given reversible dynamics.

    """
    options = read_options(VerifyOptions, "revformers verify", arguments)
    # imported here, so that the help does not wait for PyTorch
    import torch

    from revformers import verify_gradients
    from revformers.cli.quiet import quiet_libraries
    from revformers.training.console import command_console, signs_of_life

    quiet_libraries()
    model = _model(options).train()
    length = sequence_length(model, options.length, DEFAULT_LENGTH, least=2)
    if options.batch_size < 1:
        raise UserError(f"A batch needs at least 1 sequence; raise --batch_size, which is {options.batch_size}.")
    if options.dtype:
        model.to(getattr(torch, options.dtype))
    move(model, options.device)
    set_seed(options.seed)
    input_ids = random_tokens(model, options.batch_size, length)
    with as_user_error(), signs_of_life(command_console(), "comparing"):
        report = verify_gradients(model, {"input_ids": input_ids, "labels": input_ids})
    print(wrapped_report(f"{report}\n  batch               {options.batch_size} x {length} random tokens"))
    return 0 if report.bit_exact else CHECK_FAILED


def _model(options: VerifyOptions) -> "PreTrainedModel":
    """Return the reversible model that the options name."""
    from revformers import make_reversible, set_states
    from revformers.checkpoints.adapter import load_model_or_adapter
    from revformers.models.hint import without_hint
    from revformers.models.parts import reversible_stack
    from revformers.training.model import build_model
    from revformers.training.recipe import load_recipe

    if options.model.endswith((".yaml", ".yml")):
        changes = {"dynamics.name": options.dynamics} if options.dynamics else {}
        model: Any = build_model(load_recipe(options.model, changes))
    else:
        model = load_model_or_adapter(options.model, trainable=True)
        if options.dynamics:
            with as_user_error(), without_hint():  # the hint is about the network's loss, which does not matter here
                make_reversible(model, parse_dynamics(options.dynamics))
    reversible = reversible_stack(model)
    if reversible is None:
        raise UserError(f"{options.model!r} is an ordinary model; name a recurrence for it with --dynamics.")
    if not reversible.dynamics.reversible:
        raise UserError(
            f"{options.model!r} has the dynamics {reversible.dynamics.name}, which have no inverse, so no gradients "
            f"can be rebuilt to compare; name others with --dynamics."
        )
    if options.states is not None:
        with as_user_error():
            set_states(model, options.states)
    return model
