"""``revformers finetune RECIPE [--section.field value]``."""

from collections.abc import Sequence

from revformers.cli.recipe_command import read_command
from revformers.training.finetune_recipe import FinetuneRecipe

DESCRIPTION = """\
Convert and train the pretrained model that RECIPE, a .yaml file, names; options override fields of it.

Dicts take further names, as in --data.columns.prompt instruction or --conversion.options.allocation calibrated."""


def run(arguments: Sequence[str]) -> int:
    """Run the training that `arguments` describe and return the exit code.

    Raises:
        OSError: for a missing recipe, missing data or a missing model.
        UserError: for any other mistake that the user can correct.

    """
    command = read_command("finetune", arguments, FinetuneRecipe(), DESCRIPTION, "recipes/heal-wikitext.yaml")

    # imported here, so that a misspelt recipe is reported at once
    from revformers.cli.quiet import quiet_libraries
    from revformers.errors import counted
    from revformers.training.console import command_console, say
    from revformers.training.finetune import finetune
    from revformers.training.run_directory import RunDirectory

    quiet_libraries()
    console = command_console()
    result = command.run(finetune, console)
    if not result.finished:
        return command.stopped(result, console)
    metrics = result.metrics
    original, deployed = (metrics.get(f"{name}_validation_loss") for name in ("original", "deployed"))
    say(
        console,
        f"Finished {counted(metrics['steps'], 'step')} in {metrics['seconds']:,.1f} s: validation loss "
        f"{metrics['validation_loss']:.4f} after {metrics['initial_validation_loss']:.4f} before training"
        f"{f' and {original:.4f} of the ordinary network' if original is not None else ''}, "
        f"{f'{deployed:.4f} deployed as the ordinary network, ' if deployed is not None else ''}"
        f"{metrics['tokens_per_second']:,.0f} tokens/s.",
    )
    run = RunDirectory(result.directory)
    for name, path, loader in (
        ("Adapter:", run.adapter, "revformers.load_adapter"),
        ("Model:", run.model, "revformers.from_pretrained"),
    ):
        if path.is_dir():
            # transformers and PEFT load an ordinary network themselves.
            reversible = run.conversion.is_dir() and deployed is None
            call = f'{loader}("{path}")' if reversible else str(path)
            say(console, f"{name:<9} {call}")
    return 0
