"""A hook of mkdocs: the first page of the site is the README."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

README = Path(__file__).parents[2] / "README.md"


def on_files(files: Files, config: Any) -> Files:
    """Add index.md, the README with its links as seen from the directory of the documentation."""
    text = README.read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    return files
