"""What of a plain stack of layers is in memory between the passes, and how often layers are evaluated."""

from typing import NamedTuple

from torch.multiprocessing.reductions import StorageWeakRef

import revformers as rf
from tests.engine.network import Network, equal


class Between(NamedTuple):
    """Numbers over the layers of a stack.

    Attributes:
        inputs: of layers, in memory after the forward pass.
        activations: of the MLPs, the same.
        evaluations: in both passes.

    """

    inputs: int
    activations: int
    evaluations: int


def between_the_passes(policy):
    network, inputs, activations = Network(dropout=0.3), [], []
    stored = network.gradients(network.run(rf.Midpoint(), rf.Store()))
    for layer in network.layers:
        layer.register_forward_pre_hook(lambda _, arguments: inputs.append(memory(arguments[0])))
        layer[1].register_forward_hook(lambda _, __, output: activations.append(memory(output)))
    loss = network.run(rf.Midpoint(), policy)
    alive = [sum(not reference.expired() for reference in references) for references in (inputs, activations)]
    assert equal(network.gradients(loss), stored)
    return Between(*alive, len(inputs))


def memory(tensor):
    return StorageWeakRef(tensor.untyped_storage())
