"""Verification of models whose passes communicate: processes that decide otherwise would wait for each other."""

import contextlib

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import revformers as rf
from lab.sharding import tensor_parallel
from tests.distributed.comparing import made, micro_batches, of_rank, sharded_layers, whole
from tests.distributed.test_fsdp import first_version
from tests.models.test_verify import NanGradient
from tests.models.varying_kernels import AtomicSum, varying_backward
from tests.models.wrong_policies import Doubling

pytestmark = pytest.mark.thorough

WAYS = {
    "FSDP2": sharded_layers,
    "FSDP1": first_version,
    "DDP": DistributedDataParallel,
    "tensor parallel": tensor_parallel,
}


def verified(rank, way, prepare):
    """The report of this process, of a model that `prepare` changed in some way on some ranks."""
    model = made()
    with pytest.MonkeyPatch.context() as patch:
        prepare(rank, model, patch)
        batches = micro_batches(model, 1)
        (inputs,) = batches if way == "tensor parallel" else of_rank(batches, rank)
        return rf.verify_gradients(WAYS[way](model), inputs)


def assert_equal(gradients, expected):
    assert gradients.keys() == expected.keys() != set()
    assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients.items())


def unchanged(rank, model, patch):
    pass


def varying_on_one(rank, model, patch):
    if rank == 0:
        varying_backward(patch, model)


def varying_without_a_deterministic_form(rank, model, patch):
    varying_backward(patch, model, deterministic_form=False)


def varying_in_one_part(rank, model, patch):
    """The gradient of the embedding alone varies, which lies in one process where FSDP shards all weights as one."""
    varying_backward(patch, model, module=model.model.embed_tokens)


def nan_on_one(rank, model, patch):
    if rank == 0:
        model.model.norm.register_forward_hook(lambda module, arguments, output: NanGradient.apply(output))


def wrong_on_one(rank, model, patch):
    if rank == 1:
        rf.set_activations(model, Doubling())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("prepare", [unchanged, nan_on_one], ids=["numbers", "NaN on one"])
def test_exact_gradients_are_reported_so_in_all_processes(pair, way, prepare):
    for report in pair.run(verified, way, prepare):
        assert report.bit_exact
        assert report.kernels == "as set"
        if way != "FSDP1":  # it has no whole shape of a parameter
            assert report.entries == made().num_parameters()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("prepare", [varying_on_one, varying_in_one_part], ids=["one process", "one part"])
def test_kernels_that_vary_in_one_process_are_replaced_in_all(pair, way, prepare):
    for report in pair.run(verified, way, prepare):
        assert report.bit_exact
        assert report.kernels == "deterministic"
        assert "model.embed_tokens.weight" in {
            name.replace("_fsdp_wrapped_module.", "").removeprefix("module.") for name in report.varying
        }


@pytest.mark.parametrize("way", WAYS)
def test_without_a_deterministic_form_all_processes_leave_it_undecided(pair, way):
    for report in pair.run(verified, way, varying_without_a_deterministic_form):
        assert not report.decided
        assert report.missing.startswith("put_")
        assert 0 < report.max_relative_error < 1e-4


# Under tensor parallelism all processes evaluate layers together, and so under one policy.
@pytest.mark.parametrize("way", ["FSDP2", "FSDP1", "DDP"])
def test_wrong_gradients_of_one_process_are_named_in_all(pair, way):
    for report in pair.run(verified, way, wrong_on_one):
        assert not report.bit_exact
        assert report.decided
        assert any("self_attn" in name for name in report.differing)
        assert report.max_relative_error > 1e-3


def loss_nan_on_one(rank, way):
    model = made()
    (inputs,) = of_rank(micro_batches(model, 1), rank)

    def loss(output):
        return output.loss * (torch.nan if rank == 0 else 1)

    with pytest.raises(ValueError, match="The loss is nan"):
        rf.verify_gradients(WAYS[way](model), inputs, loss=loss)


@pytest.mark.parametrize("way", ["FSDP2", "FSDP1", "DDP"])
def test_a_loss_that_is_not_finite_in_one_process_is_refused_in_all(pair, way):
    pair.run(loss_nan_on_one, way)


def alone(rank):
    if rank == 0:
        model = made()
        assert rf.verify_gradients(model, micro_batches(model, 1)[0]).bit_exact


def test_a_model_of_one_process_is_verified_without_the_others(pair):
    pair.run(alone)


def steps_after(rank, way, verifies, prepare):
    """The gradients of two steps, after a verification or without."""
    model = made()
    with pytest.MonkeyPatch.context() as patch:
        prepare(rank, model, patch)
        shared = WAYS[way](model)
        batches = of_rank(micro_batches(made(), 2), rank)
        decided = rf.verify_gradients(shared, batches[0]).decided if verifies else None
        patch.setattr(AtomicSum, "only_first_varies", True)
        patch.setattr(AtomicSum, "calls", 1)
        found = []
        for inputs in batches:
            shared.zero_grad()
            shared(**inputs).loss.backward()
            found.append({name: whole(one.grad) for name, one in shared.named_parameters() if one.grad is not None})
    return decided, found


@pytest.mark.parametrize("way", ["FSDP2", "FSDP1", "DDP"])
def test_steps_after_an_undecided_verification_are_what_they_are_without(pair, way):
    undecided = pair.run(steps_after, way, True, varying_without_a_deterministic_form)
    without = pair.run(steps_after, way, False, varying_without_a_deterministic_form)
    for (decided, found), (_, expected) in zip(undecided, without, strict=True):
        assert decided is False
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)


def during_accumulation(rank, way):
    """Gradients of two batches, with a verification between the two."""
    batches = of_rank(micro_batches(made(), 2), rank)
    results = []
    for verifies in (False, True):
        shared = WAYS[way](made())
        if way == "FSDP2":
            shared.set_requires_gradient_sync(False)
        with shared.no_sync() if way != "FSDP2" else contextlib.nullcontext():
            if verifies and way != "DDP":
                with pytest.raises(ValueError, match="does not reduce them now"):
                    rf.verify_gradients(shared, batches[0])
            shared(**batches[0]).loss.backward()
        if way == "FSDP2":
            shared.set_requires_gradient_sync(True)
        if verifies and way == "DDP":
            assert rf.verify_gradients(shared.module, batches[0]).bit_exact
        elif verifies:
            with pytest.raises(ValueError, match="not reduced over the processes yet"):
                rf.verify_gradients(shared, batches[0])
        shared(**batches[1]).loss.backward()
        results.append({name: whole(one.grad) for name, one in shared.named_parameters() if one.grad is not None})
    assert_equal(*results)


@pytest.mark.parametrize("way", ["FSDP2", "FSDP1", "DDP"])
def test_verification_during_accumulation_leaves_gradients_or_is_refused(pair, way):
    pair.run(during_accumulation, way)


def in_buckets(rank, megabytes):
    batches = of_rank(micro_batches(made(), 2), rank)
    results = []
    for verifies in (False, True):
        model = made()
        shared = DistributedDataParallel(model, gradient_as_bucket_view=True, bucket_cap_mb=megabytes)
        for inputs in batches:  # from the second step on, gradients lie in buckets
            shared.zero_grad()
            shared(**inputs).loss.backward()
        shared(**batches[0]).loss.backward()
        if verifies:
            rf.set_activations(model, Doubling())
            assert not rf.verify_gradients(shared, batches[1]).bit_exact
        results.append({name: one.grad.clone() for name, one in model.named_parameters()})
    assert_equal(*results)


@pytest.mark.parametrize("megabytes", [25, 1e-6], ids=["one bucket", "a bucket a gradient"])
def test_gradients_in_buckets_are_compared_and_restored(pair, megabytes):
    pair.run(in_buckets, megabytes)


def after_a_step(rank, way):
    """Gradients of a step, with a verification after it."""
    shared = WAYS[way](made())
    first, second = of_rank(micro_batches(made(), 2), rank)
    shared(**first).loss.backward()
    before = {name: whole(one.grad) for name, one in shared.named_parameters() if one.grad is not None}
    assert rf.verify_gradients(shared, second).bit_exact
    assert_equal(before, {name: whole(one.grad) for name, one in shared.named_parameters() if one.grad is not None})


@pytest.mark.parametrize("way", ["FSDP2", "FSDP1", "DDP"])
def test_gradients_that_exist_are_restored(pair, way):
    pair.run(after_a_step, way)


def kept_by_hybrid_sharding(rank):
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    model = sharded_layers(made(), mesh=mesh)
    (inputs,) = of_rank(micro_batches(made(), 1), rank)
    assert rf.verify_gradients(model, inputs).bit_exact
    model.set_requires_all_reduce(False)
    model(**inputs).loss.backward()
    model.set_requires_all_reduce(True)
    with pytest.raises(ValueError, match="not reduced over the processes yet"):
        rf.verify_gradients(model, inputs)


def test_sums_that_hybrid_sharding_keeps_are_not_added_to(pair):
    pair.run(kept_by_hybrid_sharding)
