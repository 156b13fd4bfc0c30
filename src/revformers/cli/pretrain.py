"""``revformers pretrain RECIPE [--section.field value]``."""

from collections.abc import Sequence

from revformers.cli.recipe_command import read_command
from revformers.training.recipe import Recipe

DESCRIPTION = """\
Train the model that RECIPE, a .yaml file, describes; each option below overrides a field of it.

Dicts take further names, as in --model.config.hidden_size 512 or --dynamics.options.step_size 0.5."""


def run(arguments: Sequence[str]) -> int:
    """Run the training that `arguments` describe and return the exit code.

    Raises:
        FileNotFoundError: for a missing recipe or text file.
        UserError: for any other mistake that the user can correct.

    """
    command = read_command("pretrain", arguments, Recipe(), DESCRIPTION, "recipes/quickstart.yaml")

    # imported here, so that a misspelt recipe is reported at once
    from rich.rule import Rule

    from revformers.cli.quiet import quiet_libraries
    from revformers.errors import counted
    from revformers.streams import without_controls
    from revformers.training.console import command_console, say
    from revformers.training.pretrain import pretrain
    from revformers.training.run_directory import RunDirectory

    quiet_libraries()
    console = command_console()
    result = command.run(pretrain, console)
    if not result.finished:
        return command.stopped(result, console)
    metrics = result.metrics
    say(
        console,
        f"Finished {counted(metrics['steps'], 'step')} in {metrics['seconds']:,.1f} s: validation loss "
        f"{metrics['validation_loss']:.4f} (perplexity {metrics['validation_perplexity']:.1f}), "
        f"{metrics['tokens_per_second']:,.0f} tokens/s.",
    )
    run = RunDirectory(result.directory)
    if run.sample.is_file():
        console.print(Rule(str(run.sample)), without_controls(run.sample.read_text(encoding="utf-8")))
    say(console, f'Model:  revformers.from_pretrained("{run.model}")')
    return 0
