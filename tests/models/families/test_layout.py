"""Layouts on a layer that is written here, against its own forward."""

import pytest
import torch
from torch import nn

import revformers as rf
from revformers.models.families.layout import BlockLayout, Branch, ModuleCall


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden_states, mask=None):
        return self.linear(hidden_states) * mask, "weights"


class Layer(nn.Module):
    """Norms around its branches, experts beside its MLP, and a factor."""

    parallel, shared_norm, encoded = False, False, None

    def __init__(self):
        super().__init__()
        self.attention, self.mlp, self.beside = Attention(), nn.Linear(4, 4), nn.Linear(4, 4)
        self.first, self.second, self.after = (nn.LayerNorm(4) for _ in range(3))
        self.factor, self.dropout = 0.5, 0.0

    def forward(self, hidden_states, mask=None, encoded=None):
        attention = self.attention(hidden_states=self.first(hidden_states), mask=mask)[0]
        read = hidden_states if self.parallel else hidden_states + attention
        mlp_input = self.first(read) if self.shared_norm else self.second(read)
        mlp = self.after(self.mlp(mlp_input) + self.beside(mlp_input)) * self.factor
        return hidden_states + attention + mlp


def layout(**options):
    mlp = Branch("mlp", options.pop("norm", "second"), ("after", "dropout"), beside="beside", scale="factor")
    return BlockLayout(Branch("attention", "first"), mlp, unless="encoded", values_returned=2, **options)


INPUTS = {"mask": torch.tensor(2.0)}


@pytest.mark.parametrize(("parallel", "shared_norm"), [(False, False), (True, False), (True, True)])
def test_the_branches_add_up_to_what_the_layer_adds(parallel, shared_norm):
    layer, hidden = Layer(), torch.randn(2, 3, 4)
    layer.parallel, layer.shared_norm = parallel, shared_norm
    known = layout(parallel=parallel, norm="first" if shared_norm else "second")
    call = known.attention_call(layer, INPUTS)
    update, others = known.block_update(layer, hidden, call)
    torch.testing.assert_close(hidden + update, layer(hidden, **INPUTS))
    assert others == ("weights",)
    attention, _ = known.attention_update(layer, hidden, call)
    mlp = known.mlp_update(layer, hidden if parallel else hidden + attention)
    torch.testing.assert_close(attention + mlp, update)


def test_dropout_with_a_number_is_that_of_the_layer():
    layer = Layer()
    layer.dropout = 1.0
    assert not layout().mlp_update(layer, torch.randn(1, 2, 4)).any()
    assert layout().mlp_update(layer.eval(), torch.randn(1, 2, 4)).any()


def test_attention_is_called_as_the_layer_calls_it_and_nothing_is_evaluated():
    layer = Layer()
    layer.first.register_forward_hook(lambda *_: pytest.fail("a module was evaluated"))
    assert layout().attention_call(layer, INPUTS) == ModuleCall("hidden_states", INPUTS)
    assert ModuleCall(None, {"mask": 3})(lambda hidden, mask: (hidden, mask), 1) == (1, 3)


def test_what_a_layout_does_not_cover_is_refused():
    with pytest.raises(ValueError, match="Layer with encoded is not covered"):
        layout().attention_call(Layer(), INPUTS | {"encoded": torch.ones(1)})

    class Other(Layer):
        def forward(self, hidden_states, **_):
            return hidden_states

    with pytest.raises(rf.NotReversibleError, match="Other does not call its attention"):
        layout().attention_call(Other(), INPUTS)


@pytest.mark.parametrize(
    ("branch", "message"),
    [
        (
            Branch("mixer"),
            "names 'mixer', which the layer does not have; its modules are attention, mlp, beside, first",
        ),
        (Branch("mlp.weight"), "names 'mlp.weight', which the layer does not have"),
        (Branch("mlp", before="norm"), "names 'norm', which the layer does not have"),
        (Branch("mlp", after=("drop",)), "names 'drop', which the layer does not have"),
        (Branch("factor"), "names 'factor' as a module, but it is of the type float"),
        (Branch("mlp", before="factor"), "names 'factor' as a module, but it is of the type float"),
        (Branch("mlp", beside="factor"), "names 'factor' as a module, but it is of the type float"),
        (Branch("mlp", scale="first"), "names 'first' as a number, but it is of the type LayerNorm"),
        (
            Branch("mlp", after=("forward",)),
            "names 'forward' as a module or a dropout probability, but it is of the type method",
        ),
    ],
)
def test_a_branch_that_does_not_fit_the_layer_is_named(branch, message):
    for known in (BlockLayout(branch, Branch("mlp")), BlockLayout(Branch("attention"), branch)):
        with pytest.raises(rf.NotReversibleError, match=message):
            known.check(Layer())
    layout().check(Layer())


def test_so_is_a_condition_on_what_the_layer_has_not():
    with pytest.raises(rf.NotReversibleError, match=r"The layout of Layer names 'first.width', which"):
        layout(when={"first.width": 4}).fits(Layer())


def test_branches_in_the_other_order_are_refused():
    swapped = BlockLayout(Branch("mlp", "second"), Branch("attention", "first"))
    with pytest.raises(rf.NotReversibleError, match="the module that it calls first"):
        swapped.attention_call(Layer(), INPUTS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Branch(None), "Branch takes the name of a module of the layer, not None"),
        (lambda: BlockLayout("attention", "mlp"), "takes a revformers.Branch as attention and as mlp, not 'attention'"),
        (lambda: BlockLayout(Branch("attention"), None), "takes a revformers.Branch as attention and as mlp, not None"),
        (lambda: layout(when="factor"), "a dictionary of attributes and their values as when, not 'factor'"),
    ],
)
def test_what_is_no_layout_is_refused_where_it_is_made(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_a_layout_may_be_for_layers_that_are_built_in_one_way():
    assert layout(when={"factor": 0.5}).fits(Layer())
    assert not layout(when={"factor": 0.5, "first.eps": 1.0}).fits(Layer())


def test_values_behind_the_hidden_state_are_counted_unless_the_layer_says_it_returns_one():
    class Alone(Layer):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return hidden_states

    assert layout().others_returned(Layer()) == 1
    assert layout().others_returned(Alone()) == 0
