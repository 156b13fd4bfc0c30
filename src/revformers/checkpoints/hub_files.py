"""The files of a model on the hub, and whether the hub can be asked for them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

SECONDS_FOR_THE_HUB = 10
"""How long to wait for an answer of the hub about a model."""

UNREACHABLE: Any = HfHubHTTPError.__bases__
"""OSError and the error of the HTTP library, which depends on the version of huggingface_hub."""


def look_up(name: str, keywords: Mapping[str, Any]) -> None:
    """Raise FileNotFoundError at once if `name` is neither a directory, nor cached, nor can the hub be asked for it.

    transformers asks a hub that cannot be reached for half a minute.
    """
    cached = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    # a download that failed leaves a folder without files
    is_cached = next(cached.glob("snapshots/*/*"), None) is not None
    if Path(name).is_dir() or is_cached or keywords.get("cache_dir") or keywords.get("local_files_only"):
        return
    try:
        HfApi().model_info(name, timeout=SECONDS_FOR_THE_HUB)
    except HFValidationError as error:
        raise FileNotFoundError(f"There is no directory {name!r}, and the hub has no names of this form.") from error
    except HfHubHTTPError:
        pass  # loading says whether it does not exist or is private
    except UNREACHABLE as error:
        raise FileNotFoundError(
            f"There is no directory {name!r}, and the Hugging Face hub cannot be asked for a model of this name: "
            f"{'offline mode is on' if constants.is_offline_mode() else 'it cannot be reached'}."
        ) from error


def hub_keywords(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of `from_pretrained` that determine the location and the revision of a file."""
    names = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download")
    return {name: keywords[name] for name in names if keywords.get(name) is not None}


def local_folder(path: str, keywords: Mapping[str, Any], **options: Any) -> Path:
    """Return the local folder with the files of a directory or a hub id.

    Args:
        path: a directory or a hub id.
        keywords: keywords of `from_pretrained`.
        options: further options of `huggingface_hub.snapshot_download`.

    """
    folder = Path(path)
    if not folder.is_dir():
        given = {name: value for name, value in hub_keywords(keywords).items() if name != "subfolder"}
        folder = Path(snapshot_download(path, **given | options))
    return folder / (keywords.get("subfolder") or "")
