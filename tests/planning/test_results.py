import pytest
import torch

from revformers.planning.results import RememberedResults, makes_new_tensors, tensors_in

aten = torch.ops.aten


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def layout(tensor):
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.untyped_storage().nbytes()


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (aten.mul.Tensor, (meta(3, 4), 2.0)),
        (aten.mul.Tensor, (meta(3, 4, dtype=torch.int64), 2.0)),
        (aten.mul.Tensor, (meta(3, 4, dtype=torch.int64), 2)),
        (aten.add.Tensor, (meta(4, 3).t(), meta(1, 4))),
        (aten.cat.default, ([meta(2, 3), meta(5, 3)],)),
        (aten.max.dim, (meta(2, 3), 1)),
        (aten._to_copy.default, (meta(6, 4).t(),)),
    ],
)
def test_a_remembered_result_is_like_the_operators_own(operator, arguments):
    results = RememberedResults()
    own = tensors_in(operator(*arguments))
    for _ in range(2):
        found = tensors_in(results.run(operator, arguments, {}))
        assert list(map(layout, found)) == list(map(layout, own))


def test_an_operator_runs_once_for_arguments_of_the_same_layouts():
    results, calls = RememberedResults(), []

    class Operator:
        _schema, tags = aten.neg.default._schema, aten.neg.default.tags

        def __call__(self, tensor):
            calls.append(tensor.shape)
            return aten.neg.default(tensor)

    negate = Operator()
    for size in (3, 3, 4, 3):
        assert results.run(negate, (meta(size),), {}).shape == (size,)
    assert calls == [(3,), (4,)]


def test_what_is_written_in_place_is_returned_itself():
    results, target = RememberedResults(), meta(3)
    for _ in range(2):
        assert results.run(aten.add_.Tensor, (target, 1), {}) is target
        assert results.run(aten.mul.out, (meta(3), 2), {"out": target}) is target


def test_tensors_with_numbers_are_computed():
    results, target = RememberedResults(), torch.zeros(3)
    for _ in range(2):
        results.run(aten.add_.Tensor, (target, 1), {})
    assert target.tolist() == [2, 2, 2]
    assert results.run(aten.mul.Tensor, (target, 2), {}).tolist() == [4, 4, 4]
    assert results.run(aten.mul.Tensor, (target, 3), {}).tolist() == [6, 6, 6]


def test_views_are_views():
    results, tensor = RememberedResults(), meta(3, 4)
    for _ in range(2):
        for operator, arguments in ((aten.t.default, (tensor,)), (aten._unsafe_view.default, (tensor, [12]))):
            view = results.run(operator, arguments, {})
            assert view.untyped_storage()._cdata == tensor.untyped_storage()._cdata
    assert not makes_new_tensors(aten._unsafe_view.default)
