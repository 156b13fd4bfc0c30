import pytest
import torch

import revformers as rf
from revformers.conversion.trajectories import Trajectories
from revformers.models.attach import add_update_predictors
from revformers.models.update_predictor import PredictorForm
from tests.test_reversible import llama

BATCHES = [
    {"input_ids": torch.randint(61, shape, generator=torch.Generator().manual_seed(0))} for shape in ((2, 5), (1, 7))
]
DYNAMICS = rf.BlendedMidpoint([0.5, 0.25, 0.5])


def states_of(model, batch):
    with torch.no_grad():
        return [state.flatten(0, 1) for state in model(**batch, output_hidden_states=True).hidden_states]


def walk(trajectories, layers=range(3), **options):
    for layer in layers:
        for index in range(len(BATCHES)):
            trajectories.evaluate(layer, index, **options)
            trajectories.advance(index, trajectories.blended(index, DYNAMICS.coefficients(layer)))


def test_both_networks_are_walked_through_the_layers(tmp_path):
    # Hidden states of the last layer are normed, so that they are left out.
    ordinary = [states_of(llama(layers=3), batch)[:-1] for batch in BATCHES]
    model = rf.make_reversible(llama(layers=3), DYNAMICS)
    converted = [states_of(model, batch)[:-1] for batch in BATCHES]
    trajectories = Trajectories(model, BATCHES, tmp_path)
    for layer in range(2):
        for index in range(2):
            torch.testing.assert_close(trajectories.original[index], ordinary[index][layer])
            torch.testing.assert_close(trajectories.current[index], converted[index][layer], rtol=1e-4, atol=1e-4)
        walk(trajectories, [layer])
    assert not torch.allclose(ordinary[0][2], converted[0][2], atol=1e-2)


def test_a_walk_goes_on_from_its_states(tmp_path):
    model = rf.make_reversible(llama(layers=3), DYNAMICS)
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    first, second = (Trajectories(model, BATCHES, folder) for folder in folders)
    walk(first, [0, 1])
    states = {name: value.clone() for name, value in first.states().items()}
    second.restore(states)
    for one in (first, second):
        walk(one, [2])
    assert all(map(torch.equal, first.states().values(), second.states().values()))
    assert set(states) == {f"{name}-{index}" for name in ("original", "previous", "current") for index in (0, 1)}


def test_one_evaluation_serves_both_where_the_converted_network_stays_on_the_ordinary_ones_states(tmp_path):
    model, calls = rf.make_reversible(llama(layers=3), DYNAMICS), []
    model.model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(None))
    trajectories = Trajectories(model, BATCHES, tmp_path)
    before = trajectories.original[0].clone()
    trajectories.evaluate(0, 0, original_only=True)
    assert len(calls) == 1
    torch.testing.assert_close(trajectories.original[0], before + trajectories.update[0])


@pytest.mark.parametrize("feature", ["previous_mlp", "previous_update"])
def test_features_of_the_layer_before_are_evaluated_with_the_layer(feature, tmp_path):
    model = rf.make_reversible(llama(layers=3), DYNAMICS)
    form = PredictorForm(("state", "update", feature))
    add_update_predictors(model, form)
    trajectories = Trajectories(model, BATCHES, tmp_path)
    walk(trajectories, [0])
    trajectories.evaluate(1, 1)
    state, update, before = trajectories.features(1, form.features)
    assert state is trajectories.current[1]
    assert update is trajectories.update[1]
    assert before.shape == state.shape
    assert before.any()
