import copy
import inspect
import pickle

import pytest
from torch import nn

from revformers.models.stand_in import StandIn, refuse_replaced


class Doubling(nn.Module):
    def forward(self, number, times=1):
        return 2 * number * times


def ten_more(module, number, times=1):
    return type(module).forward(module, number, times) + 10


def test_a_stand_in_is_called_with_its_module_and_has_the_signature_of_its_class():
    module = Doubling()
    refuse_replaced(module, "undo it.")
    module.forward = StandIn(ten_more, module)
    assert module(1, times=2) == 14
    assert list(inspect.signature(module.forward).parameters) == ["number", "times"]
    with pytest.raises(ValueError, match=r"The forward of Doubling was replaced by another library; undo it\."):
        refuse_replaced(module, "undo it.")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_it_goes_with_a_copy_of_its_module(copied):
    module = Doubling()
    module.forward = StandIn(ten_more, module)
    twin = copied(module)
    assert twin.forward.args == (twin,)
    assert twin(1) == 12
