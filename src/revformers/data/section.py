"""The section `data` of a recipe."""

from dataclasses import dataclass
from typing import Literal

from revformers.errors import require

AddBosToken = Literal["auto", "always", "never"]
"""Whether to write a beginning-of-sequence token before a text; see `revformers.data.tokenizer.beginning_of_text`."""


@dataclass(frozen=True)
class SourceSection:
    """The text, its held-out part, and the blocks it is packed into.

    Attributes:
        source: The training text: stdlib (source and documentation of the running Python's standard library), a file
            whose suffix is .txt, .jsonl, .json or .parquet, a directory of such files, or the id of a data set on the
            Hugging Face hub. A .txt file is one running text; every record of the other kinds is a document.
        subset: Configuration of a hub data set that has several.
        revision: Commit, branch or tag of a hub data set; by default the head of its main branch.
        split: Split of a hub data set to train on.
        text_column: Column that holds the text in .jsonl, .json and .parquet files and hub data sets.
        validation_source: File or directory with the validation text; by default it is held out from the source.
        validation_split: Split of a hub data set to validate on; by default validation text is held out from the
            training split.
        validation_fraction: Fraction of the documents (in .txt files, of the lines) to hold out: the first ones, or for
            stdlib those that a hash of the file's name picks.
        validation_documents: Number of documents to hold out instead of a fraction; a streamed source needs it, as its
            length is unknown.
        validation_blocks: Largest number of blocks, or of unpacked records, that an evaluation reads; by default all of
            them.
        block_length: Tokens in a training sequence.
        add_bos_token: Whether packing writes the beginning-of-sequence token before every document, and before the
            running text of .txt files: auto does what the tokenizer does with a text; always or never.

    """

    source: str = "stdlib"
    subset: str | None = None
    revision: str | None = None
    split: str = "train"
    text_column: str = "text"
    validation_source: str | None = None
    validation_split: str | None = None
    validation_fraction: float = 0.05
    validation_documents: int | None = None
    validation_blocks: int | None = None
    block_length: int = 256
    add_bos_token: AddBosToken = "auto"

    def __post_init__(self) -> None:
        require(self.block_length >= 2, "data.block_length", "at least 2", self.block_length)
        require(0 < self.validation_fraction < 1, "data.validation_fraction", "in (0, 1)", self.validation_fraction)
        for name in ("validation_documents", "validation_blocks"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"data.{name}", "at least 1", value)

    def setting(self, field: str) -> str:
        """Return what messages call the setting of a field; an empty text if there is none."""
        return f"data.{field}"


@dataclass(frozen=True)
class DataSection(SourceSection):
    """The text, its tokenizer, and the blocks it is packed into.

    Attributes:
        streaming: Read a hub data set or local files during training, without storing a packed copy; requires
            data.tokenizer.
        shuffle_buffer: Documents in the shuffle buffer of a streamed source, whose order follows training.seed and is
            the same in every pass. Of other sources all blocks are shuffled in every epoch.
        tokenizer: Directory or hub id of a tokenizer; by default a byte-level BPE is trained on the training text.
        vocabulary_size: Entries of the tokenizer that is trained by default.

    """

    streaming: bool = False
    shuffle_buffer: int = 10_000
    tokenizer: str | None = None
    vocabulary_size: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.vocabulary_size >= 257, "data.vocabulary_size", "at least 257", self.vocabulary_size)
        require(self.shuffle_buffer >= 1, "data.shuffle_buffer", "at least 1", self.shuffle_buffer)
