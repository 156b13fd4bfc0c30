"""Samples of text from a trained model."""

import torch
from transformers import GenerationMixin, PreTrainedTokenizerBase

from revformers.errors import UserError
from revformers.training.recipe import SampleSection


def check_lengths(section: SampleSection, tokenizer: PreTrainedTokenizerBase, longest: int | None) -> None:
    """Raise UserError if a prompt and its continuation are longer than `longest`, the model's maximum in tokens."""
    for prompt in section.prompts:
        length = len(_token_ids(prompt, tokenizer)) + section.max_new_tokens
        if longest is not None and length > longest:
            raise UserError(
                f"The prompt {prompt!r} and sample.max_new_tokens make {length} tokens, but the model reads at most "
                f"{longest}; lower sample.max_new_tokens."
            )


def write_samples(model: GenerationMixin, tokenizer: PreTrainedTokenizerBase, section: SampleSection) -> list[str]:
    """Return each prompt of `section` with its continuation by `model`, which stays in evaluation mode."""
    model.eval()
    samples = []
    with torch.random.fork_rng():
        torch.manual_seed(section.seed)
        for prompt in section.prompts:
            input_ids = torch.tensor([_token_ids(prompt, tokenizer)], device=model.device)
            sampling = {"temperature": section.temperature, "top_k": section.top_k} if section.temperature else {}
            written = model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                max_new_tokens=section.max_new_tokens,
                do_sample=bool(sampling),
                pad_token_id=tokenizer.eos_token_id,
                **sampling,
            )
            samples.append(tokenizer.decode(written[0], skip_special_tokens=True))
    return samples


def _token_ids(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return an end-of-sequence token, after which every document begins in training, and the tokens of `prompt`."""
    return [tokenizer.eos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
