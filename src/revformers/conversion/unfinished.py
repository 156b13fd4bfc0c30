"""What a conversion has done so far, kept on disk, so that one that is interrupted goes on where it was."""

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
"""A layer of a small model takes less than writing its states does."""

STATES = "states.safetensors"

Tensors = Mapping[str, Tensor]


class Unfinished:
    """A directory of stages, each of which goes through all layers once; made when there is something to keep.

    Args:
        folder: the directory; None keeps nothing.
        identity: says what is converted, by what and to what text; called where there is a folder.

    Raises:
        ValueError: where it is no directory, or one that holds something else.

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
        """Whether there is something to go on from."""
        return self._folder is not None and self._described.is_file()

    def stage(self, name: str) -> "Stage":
        """Return the stage of that name, with what an earlier process did of it."""
        return Stage() if self._folder is None else Stage(self._folder / name, self._begin)

    def remove(self) -> None:
        """Remove what was kept: the conversion is finished. What others put into the directory stays."""
        if self._folder is None or not self.begun:
            return
        # A stage that was cut off in its first writing has results and no states.
        for directory in {file.parent for name in (STATES, "layer-*") for file in self._folder.glob(f"*/{name}")}:
            shutil.rmtree(directory)
        self._described.unlink()  # last, since it says that the rest is ours
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
    """One walk through the layers: the results of those that are done, and the states behind the last of them.

    Args:
        folder: where they are kept; None keeps nothing.
        begin: makes the directory around it.

    Attributes:
        layers_done: how many layers have results.

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
        """Return what `save` was given for `layer`, or None where it is not done."""
        return _read(self._result(layer)) if layer < self.layers_done else None

    def states(self) -> dict[str, Tensor]:
        """Return the states behind the last layer that is done; at the beginning nothing."""
        return _read(self._states) if self.layers_done else {}

    def save(self, layer: int, result: Tensors, states: Callable[[], Tensors], *, last: bool) -> None:
        """Keep the result of a layer, from time to time with the states behind it, and always of the last layer.

        Results count only once the states behind them are written, which happens last.
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
        # Nothing follows the last layer that would need the states behind it.
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
    """Return a hash of what decides the states of a model on batches of text, and of `others`.

    That is its weights, its configuration, its attention and the autocast that it runs under.
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
    """Return the name of the stage that fits the predictors to these blends."""
    return f"blends-{hashlib.sha256(' '.join(map(str, blends)).encode()).hexdigest()[:16]}"


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises into a sentence."""
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
