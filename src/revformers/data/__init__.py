"""Text: where it comes from, its tokenizer, and the blocks of tokens that a model reads."""
