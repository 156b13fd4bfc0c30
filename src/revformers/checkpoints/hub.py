"""Upload of a reversible model to the hub, with a marked configuration and its own model card."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import PreTrainedModel

from revformers.checkpoints.card import CARD_NAME, is_ours, model_card


def push_to_hub(
    model: PreTrainedModel,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str | None = "50GB",
    tags: list[str] | None = None,
) -> Any:
    """Upload a reversible model with the arguments and the files of transformers' `push_to_hub`, and the right card.

    transformers would upload a card that does not mention the recurrence.

    Returns:
        The hub's description of the commit, a `huggingface_hub.CommitInfo`.

    """
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        return upload(
            model,
            Path(folder),
            (path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()),
            repo_id,
            commit_message=commit_message,
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            tags=tags,
        )


def upload(
    model: PreTrainedModel,
    folder: Path,
    files: Iterable[str],
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tags: list[str] | None = None,
) -> Any:
    """Upload `files` of `folder`, to which `model` was saved, in one commit.

    A README.md on the hub that revformers did not write is kept, with a warning.
    """
    hub = HfApi(library_name="revformers")
    repo_id = hub.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    if revision is not None and not create_pr and not revision.startswith("refs/pr"):
        hub.create_branch(repo_id, branch=revision, token=token, exist_ok=True)
    card = folder / CARD_NAME
    if tags and is_ours(card):
        model_card(model, tags).save(card)
    names = {*files, CARD_NAME}
    try:
        if not is_ours(Path(hub.hf_hub_download(repo_id, CARD_NAME, revision=revision, token=token))):
            names.remove(CARD_NAME)
            warnings.warn(f"The {CARD_NAME} of {repo_id} was not written by revformers and is kept.", stacklevel=3)
    except LocalEntryNotFoundError:
        raise  # the hub did not answer, and may have one
    except EntryNotFoundError:
        pass
    return hub.create_commit(
        repo_id,
        [CommitOperationAdd(name, folder / name) for name in sorted(names) if (folder / name).is_file()],
        commit_message=commit_message or f"Upload {type(model).__name__}",
        commit_description=commit_description,
        token=token,
        revision=revision,
        create_pr=create_pr,
    )
