"""A checkpoint of torch.distributed.checkpoint that two processes write, and one reads."""

import pytest
import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import revformers as rf
from tests.distributed.comparing import largest_difference, made, micro_batches, of_rank, sharded_layers

pytestmark = [pytest.mark.thorough, pytest.mark.filterwarnings("ignore::UserWarning")]


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def take_steps(model, optimizer, batches):
    for inputs in batches:
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()


def rebuilding():
    model = made(predictor="update")
    rf.set_activations(model, "rebuild")
    return model


def save(rank, folder):
    model = sharded_layers(rebuilding())
    optimizer = optimizer_of(model)
    take_steps(model, optimizer, of_rank(micro_batches(model, 2)[:1], rank))
    weights, moments = get_state_dict(model, optimizer)
    checkpoint.save({"model": weights, "optimizer": moments}, checkpoint_id=folder)


def test_one_process_goes_on_where_two_stopped(pair, tmp_path):
    pair.run(save, tmp_path)
    model, alone = rebuilding(), rebuilding()
    batches = micro_batches(model, 2)
    optimizer = optimizer_of(model)
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments}
    checkpoint.load(state, checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    own = optimizer_of(alone)
    take_steps(alone, own, batches[:1])
    first = {name: weight.detach().clone() for name, weight in alone.named_parameters()}
    assert largest_difference(dict(model.named_parameters()), first) < 1e-6
    take_steps(model, optimizer, batches[1:])
    take_steps(alone, own, batches[1:])
    assert largest_difference(dict(model.named_parameters()), dict(alone.named_parameters())) < 1e-6
    assert largest_difference(dict(model.named_parameters()), first) > 1e-3
