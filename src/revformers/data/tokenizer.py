"""Tokenizers: training a byte-level BPE tokenizer, or loading an existing one."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from revformers.checkpoints import load as pretrained
from revformers.data.section import AddBosToken
from revformers.errors import UserError

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0

TRAINING_DOCUMENTS = 200_000
"""Largest number of documents to train the tokenizer on: more change few merges, but cost time and memory."""


def train_tokenizer(documents: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of at most `vocabulary_size` entries, trained on `documents`.

    Every byte has an entry, so every text can be encoded. `END_OF_TEXT` is entry `END_OF_TEXT_ID` and ends a document.
    There is no padding token: packed blocks need none, and transformers would warn about its occurrence in them.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(documents, TRAINING_DOCUMENTS), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a local directory, on the hub or in a GGUF file.

    Raises:
        UserError: if there is no tokenizer, or it has no end-of-sequence token.

    """
    try:
        tokenizer = pretrained.load_tokenizer(name)
    except OSError as error:
        raise UserError(str(error)) from error
    check_end_of_sequence(tokenizer, f"The tokenizer {str(name)!r}")
    return tokenizer


def check_end_of_sequence(tokenizer: PreTrainedTokenizerBase, name: str = "The tokenizer") -> None:
    """Raise UserError if a tokenizer, by its name in messages, has no end-of-sequence token."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{name} has no end-of-sequence token, which ends documents and completions; set its eos_token, or give "
            f"another tokenizer."
        )


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, remedy: str) -> None:
    """Raise UserError, which ends with the remedy, if the tokenizer has more tokens than the model's vocabulary."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    if len(tokenizer) > vocabulary:
        raise UserError(
            f"The tokenizer has {len(tokenizer)} tokens, but the model's vocab_size is {vocabulary}; {remedy}."
        )


def beginning_of_text(tokenizer: PreTrainedTokenizerBase, add_bos_token: AddBosToken) -> list[int]:
    """Return the tokens before a text.

    Args:
        tokenizer: the tokenizer.
        add_bos_token: auto for those that the tokenizer itself adds, which an encoded text shows; always for its
            beginning-of-sequence token; never for none.

    Raises:
        UserError: for always and a tokenizer without such a token, and for auto and a tokenizer that does not show what
            it adds.

    """
    if add_bos_token == "never":
        return []
    if add_bos_token == "always":
        if tokenizer.bos_token_id is None:
            raise UserError("The tokenizer has no beginning-of-sequence token; set add_bos_token to never or auto.")
        return [tokenizer.bos_token_id]
    whole, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    if whole == bare:
        return []
    found = next((n for n in range(len(whole)) if bare and whole[n : n + len(bare)] == bare), None)
    if found is None:
        raise UserError(
            "The tokenizer encodes a text otherwise together with the tokens that it adds, so those before a text are "
            "unknown; set add_bos_token to always or never."
        )
    return whole[:found]
