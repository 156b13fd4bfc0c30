"""Activation policies whose gradients are wrong, for tests of what has to find that."""

from dataclasses import dataclass

import revformers as rf
from revformers.engine.forward_pass import ForwardPass


@dataclass(frozen=True)
class Detached(rf.ActivationPolicy):
    """A wrong policy: it forgets the graph of every field."""

    name = "detached"
    keeps = "nothing"

    def bind(self, steps_per_layer):
        return lambda states, steps: DetachedPass(states)


class DetachedPass(ForwardPass):
    def evaluate(self, name, coefficients, field, hidden):
        return field(hidden).detach()


@dataclass(frozen=True)
class Doubling(rf.ActivationPolicy):
    """A wrong policy: the gradients of every field are twice the right ones. It communicates as a right one does."""

    name = "doubling"
    keeps = "activations"

    def bind(self, steps_per_layer):
        return lambda states, steps: DoublingPass(states)


class DoublingPass(ForwardPass):
    def evaluate(self, name, coefficients, field, hidden):
        update = field(hidden)
        update.register_hook(lambda gradient: 2 * gradient)
        return update
