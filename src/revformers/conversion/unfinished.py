"""Intermediate results of a conversion on disk, from which an interrupted conversion resumes."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from revformers.files import write_text, written_whole
from revformers.private_api import attention_of

SECONDS_BETWEEN_SAVES = 20.0
"""Shortest time between two saves: writing the states of a small model takes longer than fitting one of its layers."""

STATES = "states.safetensors"

Tensors = Mapping[str, Tensor]


class Unfinished:
    """A directory of stages, each of which visits all layers once; created with the first result.

    Args:
        folder: the directory; None stores nothing.
        identity: returns a name for the model, the method and the text; called only if there is a folder.

    Raises:
        ValueError: if `folder` is not a directory, or holds something else.

    """

    def __init__(self, folder: Path | None, identity: Callable[[], str] = str) -> None:
        self._folder = folder
        if folder is None:
            return
        self._described, self._identity = folder / "conversion.json", identity()
        if self.begun:
            if self._described.read_text(encoding="utf-8") != self._description:
                raise ValueError(
                    f"{folder} holds an unfinished conversion of another model, by another method or with other text; "
                    f"remove it, or name another directory."
                )
        elif folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise ValueError(
                f"{folder} holds something other than an unfinished conversion; remove it, or name another directory."
            )

    @property
    def begun(self) -> bool:
        """Whether there are results to resume from."""
        return self._folder is not None and self._described.is_file()

    def stage(self, name: str) -> "Stage":
        """Return the stage of that name, with the results of an earlier process."""
        return Stage() if self._folder is None else Stage(self._folder / name, self._begin)

    def remove(self) -> None:
        """Remove the results of the finished conversion, but no other files in the directory."""
        if self._folder is None or not self.begun:
            return
        # A stage that was interrupted during its first save has results and no states.
        for directory in {file.parent for name in (STATES, "layer-*") for file in self._folder.glob(f"*/{name}")}:
            shutil.rmtree(directory)
        self._described.unlink()  # last, because it identifies the rest as results of a conversion
        if not any(self._folder.iterdir()):
            self._folder.rmdir()

    @property
    def _description(self) -> str:
        return json.dumps({"identity": self._identity})

    def _begin(self) -> None:
        self._described.parent.mkdir(parents=True, exist_ok=True)
        if not self.begun:
            write_text(self._described, self._description)


class Stage:
    """One pass through the layers: the results of finished layers, and the states after the last of them.

    Args:
        folder: the directory for both; None stores nothing.
        begin: creates the parent directory.

    Attributes:
        layers_done: number of layers with results.

    """

    def __init__(self, folder: Path | None = None, begin: Callable[[], None] = lambda: None) -> None:
        self._folder = folder
        self._begin = begin
        self._unwritten: dict[int, Tensors] = {}
        self._saved = time.monotonic()
        self.layers_done = 0
        if folder is not None and self._states.is_file():
            with _named(self._states), safe_open(self._states, "pt") as file:
                self.layers_done = int(file.metadata()["layers"])

    def result(self, layer: int) -> dict[str, Tensor] | None:
        """Return the result that was saved for `layer`, or None if it is not finished."""
        return _read(self._result(layer)) if layer < self.layers_done else None

    def states(self) -> dict[str, Tensor]:
        """Return the states after the last finished layer; empty at the beginning."""
        return _read(self._states) if self.layers_done else {}

    def save(self, layer: int, result: Tensors, states: Callable[[], Tensors], *, last: bool) -> None:
        """Store the result of a layer, and at intervals, and for the last layer, write all results and the states.

        The states are written last, and results only count once they are.
        """
        if self._folder is None:
            return
        self._unwritten[layer] = result
        if not last and time.monotonic() - self._saved < SECONDS_BETWEEN_SAVES:
            return
        self._begin()
        self._folder.mkdir(exist_ok=True)
        for number, tensors in self._unwritten.items():
            _write(self._result(number), tensors)
        # No layer follows that would need the states after the last one.
        _write(self._states, {} if last else states(), {"layers": str(layer + 1)})
        self._unwritten.clear()
        self._saved = time.monotonic()

    @property
    def _states(self) -> Path:
        assert self._folder is not None
        return self._folder / STATES

    def _result(self, layer: int) -> Path:
        assert self._folder is not None
        return self._folder / f"layer-{layer}.safetensors"


def identity_of(model: Any, batches: Iterable[Tensors], *others: str) -> str:
    """Return a hash of everything that determines the states of a model on batches of text, and of `others`.

    These are the batches, and the model's weights, configuration, attention and autocast.
    """
    config, device = model.config, model.device.type
    autocast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None
    described = [torch.__version__, config.to_json_string(use_diff=False), attention_of(config), autocast]
    sha = hashlib.sha256(json.dumps([*described, *others]).encode())
    named = [*model.state_dict().items(), *(item for batch in batches for item in batch.items())]
    for name, tensor in named:
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def stage_of(blends: Iterable[Fraction]) -> str:
    """Return the name of the stage that fits the predictors for these blends."""
    return f"blends-{hashlib.sha256(' '.join(map(str, blends)).encode()).hexdigest()[:16]}"


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Raise ValueError with a remedy for the errors of a damaged file."""
    try:
        yield
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or missing; remove {path.parent.parent}, and convert from the beginning."
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    with _named(path):
        return load_file(path)


def _write(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    with written_whole(path) as staging:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, staging, metadata)
