"""Training data: text from its source to the blocks of tokens that a model trains on.

The package `datasets` reads, stores, streams and shuffles. This package adds what it lacks: the standard library as a
corpus, packing of documents across the batches of a map, and a cache that stores a tokenizer with its blocks.
"""
