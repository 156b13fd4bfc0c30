"""Counting of the bytes that autograd saves."""

from torch import Tensor, nn

from revformers.engine.states import StatePair
from revformers.engine.tape import Tape
from revformers.engine.tensors import parts_in_memory
from revformers.engine.ticket import SavedTensor
from revformers.private_api import StorageWeakRef, base_of


class SavedBytes:
    """Counts the memory of saved tensors: every block once, and no parameters.

    It holds no tensors, because PyTorch keeps the hooks of a forward pass, which hold this object.

    Attributes:
        count: bytes of what was added since it was last set to 0.

    """

    def __init__(self) -> None:
        self.count = 0
        # A weak reference, like a strong one, keeps the number of a block from being given to another.
        self._seen: set[StorageWeakRef] = set()

    def add(self, tensor: Tensor) -> None:
        """Count a tensor that autograd saves."""
        if isinstance(tensor, nn.Parameter) or isinstance(base_of(tensor), nn.Parameter):
            return
        for part in parts_in_memory(tensor):
            storage = part.untyped_storage()
            reference = StorageWeakRef(storage)
            if reference not in self._seen:
                self._seen.add(reference)
                self.count += storage.nbytes()


class CountingTape(Tape):
    """A tape that counts what autograd would save without it.

    Args:
        states: as for every tape.
        saved: the counter.

    """

    def __init__(self, states: StatePair, saved: SavedBytes) -> None:
        super().__init__(states, covers_pass=False)
        self._saved = saved

    def new_ticket(self, step: int, evaluation: object, number: int, tensor: Tensor) -> SavedTensor:
        """Count the tensor, and return its ticket."""
        self._saved.add(tensor)
        return super().new_ticket(step, evaluation, number, tensor)
