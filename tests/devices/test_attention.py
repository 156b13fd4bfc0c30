"""Every fused attention kernel, forced, where it is eligible."""

import itertools
import warnings

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import revformers as rf
from revformers.private_api import EveryKernel
from tests.devices.passes import assert_close, assert_exact, each_device, on_gpu
from tests.tiny_models import tiny

TOKENS = {"cpu": 44, "cuda": 300}
"""No multiple of the 32 to which kernels pad their log-sum-exp."""

BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
KERNELS = {
    "flash": {"cpu": "_scaled_dot_product_flash_attention_for_cpu", "cuda": "_scaled_dot_product_flash_attention"},
    "efficient": {"cuda": "_scaled_dot_product_efficient_attention"},
    "cudnn": {"cuda": "_scaled_dot_product_cudnn_attention"},
}
SHAPES = ("plain", "padding", "packed", "sliding", "grouped", "dropout")


def each_kernel(*on_cpu):
    """All kernels for a GPU; the CPU has two, one of which runs one shape by default."""
    for kernel, shape in itertools.product(BACKENDS, SHAPES):
        if kernel in ("math", "flash"):
            marks = on_cpu if (kernel, shape) == ("flash", "plain") else [pytest.mark.thorough]
            yield pytest.param("cpu", kernel, shape, id=f"cpu-{kernel}-{shape}", marks=marks)
        yield pytest.param("cuda", kernel, shape, id=f"cuda-{kernel}-{shape}", marks=pytest.mark.gpu)


def network(device, shape, dtype=torch.bfloat16):
    """A reversible model with heads of 64 elements, and a batch of several hundred tokens."""
    sliding = {"sliding_window": TOKENS[device] // 5} if shape == "sliding" else {}
    model = tiny(
        "mistral" if sliding else "llama",
        dtype=dtype,
        dropout=0.1 if shape == "dropout" else 0.0,
        hidden_size=256,
        head_dim=64,
        num_attention_heads=4,
        num_key_value_heads=1 if shape == "grouped" else 4,
        num_hidden_layers=3,
        max_position_embeddings=512,
        **sliding,
    )
    tokens = TOKENS[device]
    ids = torch.randint(10, 100, (2, tokens), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "labels": ids}
    if shape == "padding":
        inputs["attention_mask"] = torch.ones_like(ids)
        inputs["attention_mask"][0, : tokens // 8] = 0
        inputs["labels"] = ids.masked_fill(inputs["attention_mask"] == 0, -100)
    if shape == "packed":
        first = tokens // 3
        inputs["position_ids"] = torch.cat([torch.arange(first), torch.arange(tokens - first)]).repeat(2, 1)
    model = rf.make_reversible(model.to(device), rf.BlendedMidpoint("1/4"))
    return model, {name: tensor.to(device) for name, tensor in inputs.items()}


def skip_if_refused(model, inputs):
    """Run a forward pass; skip the test with the reasons that PyTorch gives if the forced kernel cannot run."""
    with warnings.catch_warnings(record=True, action="always") as reasons:
        try:
            model(**inputs)
        except RuntimeError as error:
            if "No available kernel" not in str(error):
                raise
            pytest.skip("; ".join(str(reason.message).split(" (Triggered")[0] for reason in reasons) or str(error))


def kernels_of(model, inputs):
    """The names of the kernels that a forward pass runs."""
    names = set()

    def run(kernel, arguments, keywords):
        names.add(kernel.name().removeprefix("aten::"))
        return kernel(*arguments, **keywords)

    with EveryKernel(run):
        model(**inputs)
    return names


def assert_is_used(kernel, model, inputs):
    """Assert that a forward pass runs the kernel that was forced, and none of the others."""
    found = {
        name for name in kernels_of(model, inputs) if name.startswith("_scaled_dot_product") and "math" not in name
    }
    assert found == ({KERNELS[kernel][model.device.type]} if kernel in KERNELS else set())


OPTIONS = {"policies": ("rebuild", "checkpoint", "budget:rebuild")}


@pytest.mark.parametrize(("device", "kernel", "shape"), each_kernel())
def test_a_kernel_has_the_stored_gradients_to_the_bit(deterministic, device, kernel, shape):
    model, inputs = network(device, shape)
    with sdpa_kernel(BACKENDS[kernel]):
        skip_if_refused(model, inputs)
        assert_is_used(kernel, model, inputs)
        assert_exact(model, inputs=inputs, **OPTIONS)


@pytest.mark.parametrize(("device", "kernel", "shape"), each_kernel(pytest.mark.thorough))
def test_a_kernel_is_evaluated_again_to_the_same_values(device, kernel, shape):
    """With the ordinary kernels of the gradient, some of which vary; cuDNN has no others."""
    model, inputs = network(device, shape)
    with sdpa_kernel(BACKENDS[kernel]):
        skip_if_refused(model, inputs)
        assert_is_used(kernel, model, inputs)
        assert_close(model, 2e-2, inputs=inputs, **OPTIONS)


@each_device(pytest.mark.thorough)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_that_pytorch_chooses(device, shape):
    model, inputs = network(device, shape)
    assert_close(model, 2e-2, inputs=inputs, **OPTIONS)


@pytest.mark.parametrize("shape", ["plain", "padding"])
@on_gpu
def test_the_kernel_of_single_precision(deterministic, device, shape):
    model, inputs = network(device, shape, torch.float32)
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        skip_if_refused(model, inputs)
        assert_is_used("efficient", model, inputs)
        assert_exact(model, inputs=inputs, **OPTIONS)
