"""The account of a forward pass under a budget."""

from dataclasses import dataclass

from revformers.byte_size import size_in_words


@dataclass(frozen=True)
class BudgetReport:
    """The choices of one forward pass under a `Budget`.

    Attributes:
        budget: bytes.
        kept: bytes that the forward pass left for the backward pass, of what the budget covers; at most so many, where
            the batch is smaller than the observed one.
        layers: how many layers the stack has.
        stored: how many of them are stored; with steps by branch a half counts.
        inputs_kept: how many of the others keep their input, from which they are computed again; the rest is rebuilt.
        attention_kept: how many that are not stored keep the outputs of their attention.
        attention_found: whether a kernel was found whose outputs can be kept. Eager attention has none, nor has
            attention with dropout on a CPU.
        observed: whether this was a pass of a new batch shape, which stores no layer and counts what storing takes.

    """

    budget: int
    kept: int
    layers: int
    stored: float
    inputs_kept: float
    attention_kept: int
    attention_found: bool
    observed: bool = False

    def __str__(self) -> str:
        """Say it in one line."""
        attention = (
            f"attention outputs kept of {self.attention_kept}"
            if self.attention_found
            else "no fused attention kernel whose outputs could be kept"
        )
        observed = " (observed a new batch shape; the next pass of that shape uses the budget)" if self.observed else ""
        return (
            f"{self.stored:g} of {self.layers} layers stored, inputs kept of {self.inputs_kept:g}, {attention}, "
            f"{size_in_words(self.kept)} of {size_in_words(self.budget)}{observed}"
        )
