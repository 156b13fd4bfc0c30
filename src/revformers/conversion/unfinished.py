"""What a conversion has done so far, kept on disk, so that one that is interrupted goes on where it was."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from revformers.training.run_directory import write_json

SECONDS_BETWEEN_SAVES = 20.0
"""A layer of a small model takes less than writing its states does."""

Tensors = Mapping[str, Tensor]


class Unfinished:
    """A directory of stages, each of which goes through all layers once; made when there is something to keep.

    Args:
        folder: the directory; None keeps nothing.
        identity: says what is converted, by what and to what text; called where there is a folder.

    Raises:
        ValueError: where the directory holds another conversion.

    """

    def __init__(self, folder: Path | None, identity: Callable[[], str] = str) -> None:
        self._folder = folder
        if folder is None:
            return
        self._described, self._identity = folder / "conversion.json", identity()
        if self._described.is_file():
            if json.loads(self._described.read_text(encoding="utf-8")) != {"identity": self._identity}:
                raise ValueError(
                    f"{folder} holds an unfinished conversion of another model, by another method or with other text; "
                    f"remove it, or name another directory."
                )
        elif folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} holds something other than an unfinished conversion; name another directory.")

    def stage(self, name: str) -> "Stage":
        """Return the stage of that name, with what an earlier process did of it."""
        return Stage() if self._folder is None else Stage(self._folder / name, self._begin)

    def remove(self) -> None:
        """Remove the directory: the conversion is finished."""
        if self._folder is not None and self._folder.exists():
            shutil.rmtree(self._folder)

    def _begin(self) -> None:
        self._described.parent.mkdir(parents=True, exist_ok=True)
        if not self._described.is_file():
            write_json(self._described, {"identity": self._identity})


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
            with safe_open(self._states, "pt") as file:
                self.layers_done = int(file.metadata()["layers"])

    def result(self, layer: int) -> dict[str, Tensor] | None:
        """Return what `save` was given for `layer`, or None where it is not done."""
        return load_file(self._result(layer)) if layer < self.layers_done else None

    def states(self) -> dict[str, Tensor]:
        """Return the states behind the last layer that is done; at the beginning nothing."""
        return load_file(self._states) if self.layers_done else {}

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
        return self._folder / "states.safetensors"

    def _result(self, layer: int) -> Path:
        assert self._folder is not None
        return self._folder / f"layer-{layer}.safetensors"


def identity_of(model: nn.Module, batches: Iterable[Tensors], *others: str) -> str:
    """Return a hash of the weights of a model, of batches of text, and of `others`."""
    sha = hashlib.sha256(json.dumps([torch.__version__, *others]).encode())
    named = [*model.state_dict().items(), *(item for batch in batches for item in batch.items())]
    for name, tensor in named:
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _write(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
    """Write a file beside `path`, then rename it."""
    staging = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, staging, metadata)
    staging.replace(path)
