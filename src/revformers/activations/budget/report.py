"""The report of a forward pass under a budget."""

from dataclasses import dataclass

from revformers.byte_size import size_in_words


@dataclass(frozen=True)
class BudgetReport:
    """The choices of one forward pass under a `Budget`.

    Attributes:
        budget: bytes.
        kept: bytes, of what the budget covers, that the forward pass keeps for the backward pass; an upper bound if the
            batch is smaller than the observed one.
        layers: how many layers the stack has.
        stored: how many of them are stored; with steps by branch, one branch counts as half a layer.
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
        """Return the report as one line of text."""
        rebuilt = self.layers - self.stored - self.inputs_kept
        attention = (
            f"with the attention outputs of {self.attention_kept} of these kept"
            if self.attention_found
            else "without a fused attention kernel whose outputs could be kept"
        )
        observed = " The batch shape is new: the next pass stores layers." if self.observed else ""
        return (
            f"Of {self.layers} layers, {self.stored:g} are stored, {rebuilt:g} rebuilt and {self.inputs_kept:g} "
            f"computed from kept inputs, {attention}; this uses {size_in_words(self.kept)} of "
            f"{size_in_words(self.budget)}.{observed}"
        )
