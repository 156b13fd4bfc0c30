"""Text, from where it is to the blocks of tokens that a model trains on.

`datasets` reads, stores, streams and shuffles. What stands here is what it has not: the standard library as a corpus,
packing documents into blocks across the batches of a map, and a cache in which a tokenizer lies beside its blocks.
"""
