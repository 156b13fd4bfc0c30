"""Training data: text from its source to the blocks of tokens that a model trains on.

The package `datasets` reads Parquet files, hub data sets and the lines of text files; it stores, streams and shuffles.
This package adds what it lacks: the standard library as a corpus, JSON records that are read as they are written,
faults that name the file and the line, packing of documents across the batches of a map, and a cache that stores a
tokenizer with its blocks.
"""
