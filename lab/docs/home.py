"""A hook of mkdocs that makes the README the first page of the site."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

README = Path(__file__).parents[2] / "README.md"


def on_files(files: Files, config: Any) -> Files:
    """Add index.md: the README, with its links rewritten relative to the documentation's directory."""
    text = README.read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    return files
