"""The end of prompts with completions, which TRL's SFTTrainer writes and a tokenizer may write once more."""

from collections.abc import Iterator
from contextlib import contextmanager

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from revformers.errors import UserError


@contextmanager
def without_end_of_sequence(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """While open, keep the tokenizer from appending its end-of-sequence token to a text.

    TRL's SFTTrainer writes the token after every completion, for most tokenizers do not append it.

    Raises:
        UserError: for a tokenizer that appends the token and is not one of the package tokenizers.

    """
    whole, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    if whole == bare or whole[-1] != tokenizer.eos_token_id:
        yield
        return
    backend = getattr(tokenizer, "backend_tokenizer", None)
    before = whole[: -1 - len(bare)]
    if backend is None or [*before, *bare, whole[-1]] != whole:
        raise UserError(
            "The tokenizer itself appends the end-of-sequence token, which also ends every completion, and cannot be "
            "kept from it; set model.tokenizer to a fast one with a tokenizer.json, or to one that does not append it."
        )
    kept = backend.post_processor
    beginning = {"id": "BEGINNING", "ids": before, "tokens": tokenizer.convert_ids_to_tokens(before)}
    backend.post_processor = TemplateProcessing(
        single="BEGINNING $A" if before else "$A", special_tokens=[beginning] if before else []
    )
    try:
        yield
    finally:
        backend.post_processor = kept
