"""Seals of finished folders: a last file with the digests of all others, by which damage is found before a resume."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from revformers.checkpoints.card import CARD_NAME
from revformers.data.cache import file_digest
from revformers.files import write_json

SEAL_NAME = "checksums.json"
"""The last file that is written into a folder."""


def seal(folder: Path, parts: Iterable[Path] | None = None, **facts: Any) -> None:
    """Write the digests of the files of a finished folder into it, with further facts about it.

    Args:
        folder: the folder.
        parts: the files, and the folders with the files, that the seal is for; by default all in the folder.
        facts: the facts.

    The digests find damage, such as a flipped bit or a file that is cut short; they are no protection against forgery.
    A model card, which people edit, is left out.
    """
    found = [file for part in parts or [folder] for file in ([part] if part.is_file() else part.rglob("*"))]
    files = sorted(file for file in found if file.is_file() and file.name not in (SEAL_NAME, CARD_NAME))
    digests = {file.relative_to(folder).as_posix(): file_digest(file) for file in files}
    write_json(folder / SEAL_NAME, {**facts, "sha256": digests})


def is_sealed(folder: Path) -> bool:
    """Whether the folder was finished: it has a seal, whole or damaged."""
    return (folder / SEAL_NAME).is_file()


def facts_of(folder: Path) -> dict[str, Any]:
    """Return the facts in a seal without a fault."""
    return json.loads((folder / SEAL_NAME).read_text(encoding="utf-8"))


def fault_of(folder: Path) -> str | None:
    """Return the first fault of a sealed folder, as a clause that names the file; None for a folder without a fault."""
    try:
        digests = dict(facts_of(folder)["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{folder / SEAL_NAME} is missing or damaged"
    for name, digest in digests.items():
        file = folder / name
        try:
            if not file.is_file():
                return f"{file} is missing"
            if file_digest(file) != digest:
                return f"{file} is damaged (its content has changed since it was saved)"
        except OSError as error:
            return f"{file} cannot be read ({error.strerror})"
    return None
