"""README and the pages of docs, their blocks, and the commands in them."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}


def blocks(page, language):
    """The blocks of a language on a page, in order."""
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


def commands(page):
    """The words of every command on a page, in order."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def make_run_commands():
    """The words of the commands that `make run` runs."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    variables = dict(re.findall(r"^(\w+) :?= (.*)$", makefile, re.MULTILINE))
    recipe = makefile.partition("\nrun:")[2].partition("\n\n")[0]
    for name in ("QUICKSTART", "RUN"):
        recipe = recipe.replace(f"$({name})", variables[name])
    return [shlex.split(line.strip().removeprefix("$(BIN)/")) for line in recipe.splitlines()[1:]]
