import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from revformers.engine.proof.determined import INPUT, Derivation, Determined, last_tokens
from revformers.engine.ticket import Packed


def input_of_a_field():
    return torch.randn(3, 8, requires_grad=True) * 1  # as a state: no leaf


def derivations(function, hidden):
    """How each of the tensors that a function saves follows from others."""
    determined, found = Determined(hidden), []

    def pack(tensor):
        found.append(determined.derivation(tensor))
        return Packed(determined.evaluation, len(found) - 1)

    with saved_tensors_hooks(pack, lambda _: None):
        function(hidden)
    determined.forget()
    return found


def determined(function, hidden):
    """Which of the tensors that a function saves follow from others."""
    return [derivation is not None for derivation in derivations(function, hidden)]


def test_a_derivation_names_the_operation_and_the_numbers_of_its_factors():
    found = derivations(lambda x: (x * x.sin()).cos(), input_of_a_field())
    assert [derivation and (derivation.operation, set(derivation.sources)) for derivation in found] == [
        ("", {INPUT}),
        None,
        ("", {INPUT}),
        ("MulBackward0", {1, 2}),
    ]


def test_the_input_follows_from_nothing_once_it_was_written_to():
    def run(x):
        with torch.no_grad():
            x.add_(1)
        return x.cos()

    assert determined(run, input_of_a_field()) == [False]


def test_a_tensor_that_is_saved_twice_is_read_once():
    def run(x):
        twice = x.exp()
        return twice.sin() + twice.cos()

    assert determined(run, input_of_a_field()) == [False, True, True]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: (x * 2).sin(), [False]),  # a product with a number saves nothing
        (lambda x: (x @ x.T).sin(), [True, True, False]),
        (lambda x: x.double().sin(), [False]),
        (lambda x: (x.cfloat() * x.cfloat()).sin(), [False, False, False]),
        (lambda x: x.view(2, 12).sin(), [True]),
        (lambda x: (x + torch.randn_like(x)).sin(), [False]),
        (lambda x: (x * torch.randn_like(x)).sin(), [False, False]),
        (lambda x: (x * x.sin()).cos(), [True, False, True, True]),
        (lambda x: functional.gelu(x.sin()).cos(), [True, False, False]),
        (lambda x: [part.sin() for part in (x @ x.T).split(1)], [True, True, False, False, False]),
        (lambda x: [part.sin() for part in (x @ x.T).unbind()], [True, True, False, False, False]),
        (lambda x: (x * x.sin()).add_(1).cos(), [True, False, True, False]),
    ],
)
def test_nothing_else_does(function, expected):
    assert determined(function, input_of_a_field()) == expected


def test_what_was_written_to_unseen_by_the_graph_does_not_follow():
    def run(x):
        product = x * x.sin()
        with torch.no_grad():
            product.add_(1)
        return product.cos()

    assert determined(run, input_of_a_field())[-1] is False


def test_wrappers_and_sparse_tensors_do_not_follow():
    matrix = torch.eye(3).to_sparse()
    assert determined(lambda x: torch.sparse.mm(matrix, x), input_of_a_field())[0] is False


@given(st.integers(1, 3), st.integers(1, 4), st.booleans())
def test_the_last_token_of_every_sequence_is_read(batch, tokens, as_matrix):
    whole = torch.arange(batch * tokens * 2).view(batch, tokens, 2)
    saved = whole.view(-1, 2) if as_matrix else whole
    found = last_tokens(saved, Derivation("", (), (whole.shape,)))
    assert found.tolist() == [sequence[-1] for sequence in whole.tolist()]


def test_a_vector_and_a_matrix_without_rows_are_read_whole():
    for tensor in (torch.ones(4), torch.ones(0, 4)):
        assert last_tokens(tensor, Derivation("", (), (tensor.shape,))).shape == tensor.shape
