"""The harness's wrapper of a loaded model, which records every request that loses a part of its context."""

import copy
from typing import Any

from lm_eval.models.huggingface import HFLM
from tokenizers import processors
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lab.private_api import tokens_to_write
from revformers.data.section import AddBosToken
from revformers.data.tokenizer import beginning_of_text
from revformers.errors import UserError


class LoadedLanguageModel(HFLM):
    """`HFLM` around a model and its tokenizer, neither of which is changed.

    `truncated` holds the arguments of every request whose context was cut at its beginning.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        progress: bool,
        add_bos_token: AddBosToken = "auto",
    ) -> None:
        self.truncated: set[tuple[str, str] | str] = set()
        self._progress = progress
        copied = copy.deepcopy(tokenizer)  # the harness adds a padding token
        if add_bos_token == "always" and not beginning_of_text(tokenizer, "auto"):
            (token,) = beginning_of_text(tokenizer, "always")
            copied.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, token)]
            )
        super().__init__(
            pretrained=model,
            backend="causal",
            tokenizer=copied,
            add_bos_token=False if add_bos_token == "never" else None,  # None for what the tokenizer does
            batch_size=batch_size,
            prefix_token_id=first_token(model, tokenizer),
        )
        self._ends_text = tokenizer.eos_token_id is not None

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether it is the greedy one."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm or not self._progress)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text, read in windows."""
        return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm or not self._progress)

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        for arguments, context, continuation in requests:
            if len(continuation) > self.max_length:
                raise UserError(
                    f"An answer of {len(continuation)} tokens is longer than the {self.max_length} that the model "
                    f"reads: it cannot be scored on this task."
                )
            # the last token is predicted but not read
            if len(context) + len(continuation) > self.max_length + 1:
                self.truncated.add(arguments)
        # windows come in batches, and a progress bar for each batch is useless
        quiet = disable_tqdm or not self._progress or override_bs is not None
        return super()._loglikelihood_tokens(requests, disable_tqdm=quiet, override_bs=override_bs)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the text that the model writes after each context."""
        if not self._ends_text:
            raise UserError("The tokenizer has no end-of-text token, which tasks with generated answers need.")
        for request in requests:
            context, options = request.args
            written = tokens_to_write(options, self.max_gen_toks)
            if written >= self.max_length:
                raise UserError(
                    f"The task {request.task_name} lets the model write {written} tokens, which leaves no room for the "
                    f"question in the {self.max_length} that the model reads."
                )
            if len(self.tok_encode(context)) > self.max_length - written:
                self.truncated.add(context)
        return super().generate_until(requests, disable_tqdm=disable_tqdm or not self._progress)


def first_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that precedes text without a context, because every scored token needs one before it.

    It is the tokenizer's beginning-of-text token, else its end-of-text token, as in the harness. If the tokenizer has
    neither, it is that of the model's configuration.

    Raises:
        UserError: if there is no such token.

    """
    config = model.config.get_text_config()
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, config.bos_token_id, config.eos_token_id):
        if isinstance(token, int):
            return token
    raise UserError("Neither the tokenizer nor the model's configuration names a token that begins a text.")
