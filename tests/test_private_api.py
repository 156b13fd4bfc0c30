"""What `revformers.private_api` relies on, in the libraries that are installed: one test for each use.

Where a test fails after an upgrade, its message names what is gone, and `private_api` is the place to change.
"""

import functools
import inspect
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import transformers
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention, silu
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.auto import modeling_auto

from revformers import private_api
from tests.gguf_models import tiny_llama, tiny_tokenizer, write_gguf
from tests.tiny_models import batch, tiny


def ancestors(tensor):
    """The nodes of the graph that ends in a tensor."""
    found, nodes = [], [tensor.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in found:
            found.append(node)
            nodes += [following for following, _ in node.next_functions]
    return found


# Tensors and their memory


def test_pytorch_counts_how_often_a_tensor_is_written_to():
    tensor = torch.zeros(3)
    before = private_api.version_of(tensor)
    tensor[:2].add_(1)
    assert private_api.version_of(tensor) == before + 1
    tensor.data.add_(1)
    assert private_api.version_of(tensor) == before + 1, "writes through .data are counted now: compare less"
    with torch.inference_mode():
        assert private_api.version_of(torch.zeros(3)) == 0


def test_pytorch_knows_what_a_view_is_a_view_of():
    tensor = torch.zeros(2, 3)
    assert private_api.base_of(tensor) is None
    assert private_api.base_of(tensor[0].view(3, 1)) is tensor


def test_every_living_storage_has_a_number_of_its_own():
    for device in ("cpu", "meta"):
        tensor, other = torch.zeros(3, device=device), torch.zeros(3, device=device)
        numbers = [private_api.storage_number(value.untyped_storage()) for value in (tensor, tensor[1:], other)]
        assert numbers[0] == numbers[1] != numbers[2]
        assert private_api.StorageWeakRef(tensor.untyped_storage()).cdata == numbers[0]


def test_a_weak_reference_to_a_storage_expires_with_it():
    tensor = torch.zeros(3)
    reference = private_api.StorageWeakRef(tensor.untyped_storage())
    assert reference == private_api.StorageWeakRef(tensor.untyped_storage())
    assert hash(reference) == hash(private_api.StorageWeakRef(tensor.untyped_storage()))
    assert not reference.expired()
    del tensor
    assert reference.expired()


def test_wrappers_of_tensors_tell_what_they_hold():
    from torch.testing._internal.two_tensor import TwoTensor

    first, second = torch.zeros(3), torch.ones(3)
    inner = private_api.inner_tensors(TwoTensor(first, second))
    assert inner is not None
    assert inner[0] is first
    assert inner[1] is second
    assert private_api.inner_tensors(first) is None
    assert private_api.inner_tensors(nn.Parameter(first)) is None


def test_results_of_collectives_are_waited_for():
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    pending = AsyncCollectiveTensor(torch.ones(3))
    assert [inner.tolist() for inner in private_api.inner_tensors(pending)] == [[1.0] * 3]
    assert pending.completed


def test_deepspeed_calls_its_attributes_so():
    zero = pytest.importorskip("deepspeed.runtime.zero")
    text = "".join(path.read_text() for path in Path(zero.__file__).parent.glob("*.py"))
    for name in ("ds_tensor", *private_api.COUNTED_BY_ENGINES):
        assert f".{name} " in text, name


def test_tensors_in_coo_layout_have_indices_and_values():
    tensor = torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (3,))
    indices, values = private_api.sparse_parts(tensor)
    assert indices.tolist() == [[0, 0]]
    assert values.tolist() == [1.0, 2.0]


# Modules


def test_modules_hold_their_parts_by_name():
    module = nn.Linear(2, 3, bias=False)
    module.register_buffer("count", torch.zeros(1))
    module.inner = nn.Identity()
    assert dict(private_api.parameters_of(module)) == {"weight": module.weight, "bias": None}
    assert dict(private_api.buffers_of(module)) == {"count": module.count}
    assert dict(private_api.children_of(module)) == {"inner": module.inner}


def test_modules_hold_their_hooks_by_number():
    module = nn.Identity()
    before, after = (lambda *_: None), (lambda *_: None)
    module.register_forward_pre_hook(before, with_kwargs=True)
    handle = module.register_forward_hook(after)
    assert list(private_api.forward_pre_hooks(module).values()) == [before]
    assert dict(private_api.forward_hooks(module)) == {handle.id: after}


# Autograd


def test_transforms_of_torch_func_are_seen():
    seen = []
    torch.func.grad(lambda x: seen.append(private_api.transforms_are_active()) or x.sum())(torch.ones(1))
    assert seen == [True]
    assert not private_api.transforms_are_active()


def test_a_backward_pass_has_a_number_and_an_end():
    events = []

    def note(gradient):
        events.append(private_api.current_backward_pass())
        private_api.at_end_of_backward_pass(lambda: events.append("end"))

    weight = torch.ones(2, requires_grad=True)
    for _ in range(2):
        product = weight * 2
        product.register_hook(note)
        product.sum().backward()
    first, _, second, _ = events
    assert events == [first, "end", second, "end"]
    assert None not in (first, second)
    assert first != second
    assert private_api.current_backward_pass() is None


def test_an_error_at_the_end_of_a_backward_pass_reaches_the_caller():
    def fail():
        raise ArithmeticError("found at the end")

    product = torch.ones(2, requires_grad=True) * 2
    product.register_hook(lambda _: private_api.at_end_of_backward_pass(fail))
    with pytest.raises(ArithmeticError, match="found at the end"):
        product.sum().backward()


@pytest.mark.parametrize(
    ("name", "function"), [("MulBackward0", lambda x: x.sin() * x.cos()), ("SiluBackward0", lambda x: silu(x.sin()))]
)
def test_products_save_their_factors_under_known_names(name, function):
    """And what a node holds for a saved tensor is what the hook made of it, which is not unpacked."""

    def pack(tensor):
        packed.append(object())
        return packed[-1]

    packed, x = [], torch.rand(3, requires_grad=True)
    with saved_tensors_hooks(pack, lambda _: pytest.fail("a saved tensor was unpacked")):
        node = function(x).grad_fn
    assert node.name() == name
    names = private_api.NODES_THAT_SAVE_THEIR_FACTORS[name]
    held = [private_api.held_for_saved(node, saved) for saved in names]
    assert all(any(value is known for known in packed) for value in held)
    assert len(set(map(id, held))) == len(names)
    assert private_api.held_for_saved(node, "what_no_node_saves") is None


def test_the_node_of_compiled_code_is_known_by_name_and_holds_what_the_pack_hook_returned():
    packed = []

    def pack(tensor):
        packed.append([tensor])
        return packed[-1]

    with saved_tensors_hooks(pack, lambda held: held[0]):
        result = torch.compile(lambda one: one.sin() * one, backend="aot_eager")(torch.ones(2, requires_grad=True))
    assert result.grad_fn.name().startswith(private_api.COMPILED_NODES)
    held = private_api.held_by_function(result.grad_fn)
    assert len(held) == len(packed) > 0
    assert all(one is other for one, other in zip(held, packed, strict=True))


def test_no_product_saves_more_than_its_factors():
    for name, factors in private_api.NODES_THAT_SAVE_THEIR_FACTORS.items():
        kind = getattr(torch._C._functions, name)
        saved = {attribute for attribute in dir(kind) if attribute.startswith("_raw_saved_")}
        assert saved == {f"_raw_saved_{factor}" for factor in factors}


def test_nodes_of_leaves_name_them():
    weight = torch.ones(2, requires_grad=True)
    nodes = ancestors(weight * 2)
    assert [private_api.leaf_of_node(node) is weight for node in nodes] == [False, True]
    assert private_api.leaf_of_node(nodes[0]) is None


def test_hooks_on_tensors_are_seen():
    weight = torch.ones(2, requires_grad=True)
    assert not private_api.has_gradient_hooks(weight)
    assert not private_api.has_accumulation_hooks(weight)
    gradient_hook = weight.register_hook(lambda _: None)
    assert private_api.has_gradient_hooks(weight)
    assert not private_api.has_accumulation_hooks(weight)
    gradient_hook.remove()
    accumulation_hook = weight.register_post_accumulate_grad_hook(lambda _: None)
    assert private_api.has_accumulation_hooks(weight)
    assert not private_api.has_gradient_hooks(weight)
    accumulation_hook.remove()
    assert not private_api.has_accumulation_hooks(weight)


def attention_nodes():
    return [name for name in dir(torch._C._functions) if name.startswith(private_api.ATTENTION_NODES)]


def test_every_fused_attention_kernel_has_a_node_whose_name_is_known():
    """PyTorch's builds for CPUs have the nodes of GPUs as well."""
    for kernel in private_api.ATTENTION_KERNELS - {"flex_attention"}:
        words = kernel.removeprefix("aten::_").split("_")
        assert "".join(map(str.capitalize, words)) + "Backward0" in attention_nodes()


def test_what_attention_nodes_save_besides_their_inputs_and_output_is_known():
    """A new name may be of a tensor that the kernel does not write in full."""
    written = {"query", "key", "value", "output", "attn_bias", "attn_mask", "cum_seq_k", "cum_seq_q"}
    for name in attention_nodes():
        kind = getattr(torch._C._functions, name)
        saved = {entry.removeprefix("_raw_saved_") for entry in dir(kind) if entry.startswith("_raw_saved_")}
        assert len(saved & set(private_api.LOG_SUM_EXPS)) == 1
        assert saved - written - set(private_api.LOG_SUM_EXPS) - set(private_api.RANDOM_STATES) == set()
        assert hasattr(kind, "_saved_dropout_p")


def test_the_node_of_an_attention_kernel_says_whether_it_dropped_anything():
    query = torch.randn(1, 1, 4, 8, requires_grad=True)
    (node,) = [
        node
        for node in ancestors(scaled_dot_product_attention(query, query, query))
        if node.name().startswith(private_api.ATTENTION_NODES)
    ]
    assert private_api.attention_dropout(node) == 0.0
    assert private_api.held_for_saved(node, "logsumexp").shape == (1, 1, 4)


# Kernels


def test_attention_runs_by_a_kernel_that_is_known_by_name():
    query = torch.randn(1, 1, 4, 8)
    names = []

    def run(kernel, arguments, keywords):
        names.append(kernel.name())
        return kernel(*arguments, **keywords)

    with private_api.EveryKernel(run):
        scaled_dot_product_attention(query, query, query)
    assert private_api.ATTENTION_KERNELS.intersection(names), f"attention ran {names}"


def test_only_the_innermost_mode_is_left():
    seen = []

    def observed(name):
        return lambda kernel, arguments, keywords: seen.append(name) or kernel(*arguments, **keywords)

    with private_api.EveryKernel(observed("outer")), private_api.EveryKernel(observed("inner")):
        with private_api.outside_every_kernel():
            torch.ones(1).sin()
        assert set(seen) == {"outer"}
        with FlopCounterMode(display=False), private_api.outside_every_kernel():
            torch.ones(1).sin()
        assert set(seen) == {"outer", "inner"}, "another mode is the innermost"
    with private_api.outside_every_kernel():
        torch.ones(1).sin()


@pytest.mark.parametrize("name", sorted(private_api.ATTENTION_KERNELS - {"flex_attention"}))
def test_attention_kernels_name_their_arguments(name):
    kernel = getattr(torch.ops.aten, name.removeprefix("aten::")).default
    place = [argument.name for argument in kernel._schema.arguments].index("dropout_p")
    assert private_api.named_arguments(kernel, (None,) * place + (0.25,), {})["dropout_p"] == 0.25
    assert private_api.named_arguments(kernel, (None,) * 3, {"dropout_p": 0.5})["dropout_p"] == 0.5
    assert "dropout_p" not in private_api.named_arguments(kernel, (None,) * 3, {})


def test_flex_attention_is_a_kernel_of_its_own():
    from torch.nn.attention.flex_attention import flex_attention

    names = []

    def run(kernel, arguments, keywords):
        names.append(kernel.name())
        if names[-1] == "flex_attention":
            assert private_api.named_arguments(kernel, arguments, keywords) == keywords
        return kernel(*arguments, **keywords)

    query = torch.randn(1, 1, 16, 16)
    with private_api.EveryKernel(run):
        flex_attention(query, query, query)
    assert names.count("flex_attention") == 1


def test_compiled_code_stays_compiled_under_a_mode_that_sees_kernels():
    """It is the only way to see that PyTorch asks `ignore_compile_internals`."""

    def run(kernel, arguments, keywords):
        return kernel(*arguments, **keywords)

    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x: x.sin().cos(), backend=backend, fullgraph=True)
    with private_api.EveryKernel(run):
        compiled(torch.ones(3))
    assert len(graphs) == 1


def test_operations_are_counted():
    counts = {}

    def run(kernel, arguments, keywords):
        output = kernel(*arguments, **keywords)
        counts[kernel.name()] = private_api.operations_of(kernel, arguments, keywords, output)
        return output

    query = torch.randn(2, 2, 5, 4)
    with private_api.EveryKernel(run):
        torch.ones(2, 3) @ torch.ones(3, 4) + 1
        scaled_dot_product_attention(query, query, query)
    assert counts["aten::mm"] == 2 * 2 * 3 * 4
    assert counts["aten::add.Tensor"] == 0
    assert counts["aten::_scaled_dot_product_flash_attention_for_cpu"] == 2 * (2 * 2 * 2 * 5 * 5 * 4)


@pytest.mark.parametrize("name", ["flash_attention_for_cpu", "flash_attention", "efficient_attention"])
def test_attention_whose_keys_have_fewer_heads_is_counted_like_that_with_all(name):
    kernel = getattr(torch.ops.aten, f"_scaled_dot_product_{name}").default
    query, key = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
    found = private_api.operations_of(kernel, (query, key, key), {}, query)
    assert found == private_api.operations_of(kernel, (query, query, query), {}, query) == 2 * (2 * 4 * 2 * 5 * 5 * 8)


# Counting what a step computes


@pytest.mark.parametrize("function", ["sin", "cos"])
def test_the_node_that_runs_has_the_number_that_it_was_made_with(function):
    numbers = []

    class Noting(private_api.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            numbers.append((func.name(), private_api.number_of_running_node()))
            return func(*args, **(kwargs or {}))

    weight = torch.ones(2, requires_grad=True)
    first = private_api.number_of_next_node()
    result = getattr(weight, function)()
    second = private_api.number_of_next_node()
    total = result.sum()
    with Noting():
        total.backward()
    in_node = {number for name, number in numbers if name == "aten::mul.Tensor"}
    assert all(first <= number < second for number in in_node)
    assert in_node
    assert private_api.number_of_running_node() is None


def test_the_engine_is_told_from_code_that_it_runs():
    """It adds the gradients of a tensor that is used twice; the function between the two adds by itself."""
    adds = []

    class Noting(private_api.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.name() == "aten::add.Tensor":
                adds.append(private_api.is_engine(inspect.currentframe().f_back))
            return func(*args, **(kwargs or {}))

    class AddsItself(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient + 1

    weight = torch.ones(2, requires_grad=True)
    hidden = AddsItself.apply(weight * 2)
    total = (hidden.sin() * hidden.cos()).sum()
    with Noting():
        total.backward()
    assert adds == [True, False]


def test_a_block_runs_without_the_modes_around_it():
    names = []

    def run(kernel, arguments, keywords):
        names.append(kernel.name())
        return kernel(*arguments, **keywords)

    with private_api.EveryKernel(run):
        torch.ones(2).sin()
        with private_api.without_dispatch_modes():
            torch.ones(2).cos()
    assert "aten::sin" in names
    assert "aten::cos" not in names


def test_kernels_tell_what_shares_memory():
    writes = private_api.schema_of(torch.ops.aten.add_.Tensor)
    assert writes.is_mutable
    assert [value.name for value in writes.arguments if value.alias_info and value.alias_info.is_write] == ["self"]
    makes = private_api.schema_of(torch.ops.aten.add.Tensor)
    assert not makes.is_mutable
    assert [(str(value.type), value.alias_info) for value in makes.returns] == [("Tensor", None)]
    assert private_api.schema_of(torch.ops.aten.view.default).returns[0].alias_info is not None


def test_numbers_copies_and_views_are_taken_by_known_kernels():
    kernels = []

    def run(kernel, arguments, keywords):
        kernels.append(kernel)
        return kernel(*arguments, **keywords)

    with private_api.EveryKernel(run):
        torch.ones(1).item()
        torch.ones(1).to(torch.float64)
        torch.ones(2, 3, 4) @ torch.ones(4, 4)
    assert {private_api.READ_NUMBER, private_api.COPY_TO, private_api.UNSAFE_VIEW} <= set(kernels)
    assert private_api.schema_of(private_api.UNSAFE_VIEW).returns[0].alias_info is None


def test_attention_without_numbers_runs_by_the_kernel_of_cpus():
    query = torch.empty(1, 2, 64, 8, device="meta")
    output, log_sum_exp = private_api.CPU_ATTENTION(query, query, query, 0.0, True)
    assert output.shape == query.shape
    assert log_sum_exp.numel() == 2 * 64
    gradients = private_api.CPU_ATTENTION_BACKWARD(output, query, query, query, output, log_sum_exp, 0.0, True)
    assert [gradient.shape for gradient in gradients] == [query.shape] * 3
    shape = query.shape
    assert private_api.sdpa_backward_flop_count(shape, shape, shape, shape) == 5 * 2 * 2 * 64 * 64 * 8
    assert (
        private_api.flop_registry[torch.ops.aten.mm](torch.ones(2, 3), torch.ones(3, 4), out_val=torch.ones(2, 4))
        == 2 * 2 * 3 * 4
    )


def test_trees_have_leaves():
    assert private_api.tree_leaves([1, {"a": (2, None)}]) == [1, 2, None]


# PyTorch's compiler


def double(value):
    return value * 2


def test_copies_of_a_function_are_compiled_as_often_as_one():
    with torch.compiler.config.patch(recompile_limit=1):
        compiled = [
            torch.compile(private_api.with_own_recompilations(double), backend="eager", fullgraph=True, dynamic=False)
            for _ in range(2)
        ]
        for size, function in enumerate(compiled, start=2):
            assert function(torch.ones(size)).tolist() == [2.0] * size
        with pytest.raises(Exception, match="Hard failure due to fullgraph"):
            compiled[0](torch.ones(5))


def test_a_write_to_what_a_function_returned_is_refused_in_known_words():
    class Returns(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.view_as(value), value.clone()

        @staticmethod
        def backward(ctx, *gradients):
            return gradients[0]

    view, _ = Returns.apply(torch.ones(2, requires_grad=True) * 1)
    with pytest.raises(RuntimeError) as refused:
        view.add_(1)
    assert private_api.is_refused_write(refused.value, "Returns")
    assert not private_api.is_refused_write(refused.value, "Other")


def test_an_operation_without_a_deterministic_form_is_named():
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError) as refused:
            torch.zeros(1).put_(torch.tensor([0]), torch.ones(1))
    finally:
        torch.use_deterministic_algorithms(False)
    assert private_api.without_deterministic_form(refused.value) == "put_"
    assert private_api.without_deterministic_form(RuntimeError("shapes cannot be multiplied")) is None


# transformers


@pytest.mark.parametrize("name", ["BambaForCausalLM", "FalconForCausalLM", "GPTJForCausalLM", "GPTNeoForCausalLM"])
def test_layers_are_annotated_to_return_what_they_return(name):
    model = tiny(name)
    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 1)
    returned = []
    layers[0].register_forward_hook(lambda *values: returned.append(values[-1]))
    model(**batch(model))
    assert isinstance(returned[0], torch.Tensor) == private_api.returns_one_tensor(type(layers[0]).forward)


def test_annotations_may_be_texts():
    """As they are where a module begins with ``from __future__ import annotations``."""

    def one(hidden: "UnknownToPython") -> "torch.Tensor":  # noqa: F821
        return hidden

    def several(hidden) -> "tuple[torch.Tensor]":
        return (hidden,)

    @functools.wraps(one)
    def wrapped(*arguments):
        return one(*arguments)

    assert private_api.returns_one_tensor(one)
    assert private_api.returns_one_tensor(wrapped)
    assert not private_api.returns_one_tensor(several)
    assert not private_api.returns_one_tensor(lambda hidden: hidden)


def test_causal_language_models_compute_their_loss_by_an_attribute():
    model = tiny("llama")
    assert private_api.calls_loss_function(type(model))
    assert not private_api.calls_loss_function(type(model.model))
    model.loss_function = lambda logits, labels, **_: logits.sum() * 0 + 7
    assert model(**batch(model)).loss == 7


def test_loading_leaves_a_mark_on_a_model(tmp_path):
    model = tiny("llama")
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert private_api.was_loaded(loaded)
    assert not private_api.was_loaded(model)
    assert not private_api.was_loaded(type(model)(loaded.config))


def test_auto_classes_know_the_models_of_a_configuration():
    mapping = private_api.models_of_auto_class(transformers.AutoModelForCausalLM)
    assert mapping[transformers.LlamaConfig] is transformers.LlamaForCausalLM
    assert private_api.models_of_auto_class(transformers.LlamaForCausalLM) is None
    autos = [auto for auto in vars(modeling_auto).values() if private_api.models_of_auto_class(auto) is not None]
    assert transformers.AutoModelForSequenceClassification in autos


def test_configurations_without_an_auto_class_are_saved_without_code(tmp_path):
    class Marked(transformers.LlamaConfig):
        pass

    Marked.register_for_auto_class()
    Unmarked = type("Unmarked", (Marked,), dict(private_api.NO_REMOTE_CODE))
    Marked().save_pretrained(tmp_path / "marked")
    Unmarked().save_pretrained(tmp_path / "unmarked")
    assert list((tmp_path / "marked").glob("*.py"))
    assert not list((tmp_path / "unmarked").glob("*.py"))


def test_configurations_name_the_attention():
    model = tiny("llama")
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert private_api.attention_of(model.config) == name
    assert private_api.attention_of(None) is None


def test_files_that_are_not_there_are_told_from_errors(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert private_api.cached_file_if_any(tmp_path, "config.json") == str(tmp_path / "config.json")
    assert private_api.cached_file_if_any(tmp_path, "other.json") is None


def test_weights_of_other_sizes_are_refused_in_known_words(tmp_path):
    model = tiny("llama")
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError) as refused:
        type(model).from_pretrained(tmp_path, vocab_size=model.config.vocab_size + 1)
    assert private_api.is_size_mismatch(refused.value)


def test_weights_of_other_sizes_than_a_module_are_noticed():
    for size, names in ((3, ("weight",)), (2, ("other",))):
        with pytest.raises(RuntimeError) as refused:
            nn.Linear(2, 2, bias=False).load_state_dict({name: torch.ones(size, size) for name in names})
        assert private_api.is_state_size_mismatch(refused.value) is (size == 3)


def test_gguf_files_are_read(tmp_path):
    model = tiny_llama()
    path = str(tmp_path / "model.gguf")
    write_gguf(path, model, tiny_tokenizer())
    metadata, tensors = private_api.gguf_metadata(path, ("tokenizer.ggml.tokens",))
    assert metadata["general.architecture"] == "llama"
    assert len(metadata["tokenizer.ggml.tokens"]) == 300
    assert "token_embd.weight" in tensors
    header = private_api.gguf_header(path)
    assert header.data_start > 0
    assert all(tensor.nbytes > 0 and tensor.offset >= 0 for tensor in header.tensors)
    assert "smollm" not in (private_api.gguf_text_splits() or ()), "transformers splits as SmolLM does: use it"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("_load_from_checkpoint", ["self", "resume_from_checkpoint", "model"]),
        ("_load_best_model", ["self"]),
        ("_push_from_checkpoint", ["self", "checkpoint_folder"]),
        ("_issue_warnings_after_load", ["self", "load_result"]),
    ],
)
def test_the_trainer_has_the_methods_that_are_wrapped(name, arguments):
    """That it calls them is for tests/training/test_trainer.py."""
    method = inspect.unwrap(getattr(transformers.Trainer, name))
    assert list(inspect.signature(method).parameters) == arguments


# PEFT, TRL, datasets and bitsandbytes


def test_layers_of_peft_say_which_adapters_work():
    model = tiny("llama", lora=True)
    layer = next(module for module in model.modules() if isinstance(module, LoraLayer))
    off, merged, active = private_api.ADAPTERS_OFF, private_api.ADAPTERS_MERGED, private_api.ADAPTERS_ACTIVE
    state = [vars(layer)[name] for name in (off, merged, active)]
    assert state == [False, [], ["default"]]
    with model.disable_adapter():
        assert vars(layer)[off] is True
    model.merge_adapter()
    assert vars(layer)[merged] == ["default"]


def test_peft_tells_its_layers_about_a_batch_by_hooks():
    model = tiny("llama", lora=True).eval()
    layer = next(module for module in model.modules() if isinstance(module, LoraLayer))
    seen = []
    layer.register_forward_hook(
        lambda module, *_: seen.extend(map(private_api.is_hook_of_peft, private_api.forward_pre_hooks(module).values()))
    )
    inputs = batch(model)["input_ids"]
    model(input_ids=inputs, adapter_names=["default", "__base__"])
    assert seen == [True]
    assert not private_api.forward_pre_hooks(layer)
    assert not private_api.is_hook_of_peft(lambda *_: None)


def test_the_trainer_goes_on_with_the_losses_since_the_last_log(tmp_path):
    class Constant(nn.Linear):
        def forward(self, **inputs):
            return {"loss": self.weight.sum() * 0 + 2}

    class Restore(transformers.TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            private_api.restore_unlogged_loss(trainer, 10.0, -1)

    options = {"max_steps": 3, "logging_steps": 2, "save_strategy": "no", "remove_unused_columns": False}
    arguments = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **options)
    data = [{"labels": 0}] * 24
    trainer = transformers.Trainer(Constant(1, 1), arguments, train_dataset=data, callbacks=[Restore()])
    trainer.remove_callback(transformers.PrinterCallback)
    result = trainer.train()
    assert trainer.state.log_history[0]["loss"] == (10 + 2 + 2) / 3
    assert private_api.unlogged_loss(trainer) == (2.0, 2)
    assert result.training_loss == 2.0


def test_transformers_knows_which_reporters_are_installed():
    from transformers.integrations import integration_utils

    known = list(integration_utils.INTEGRATION_TO_CALLBACK)
    installed = integration_utils.get_available_reporting_integrations()
    assert sorted({*private_api.missing_reporters(known), *installed}) == sorted(known)
    assert not {*private_api.missing_reporters(known)} & {*installed}
    with pytest.raises(ValueError, match="zig"):
        private_api.missing_reporters(["zig"])


LOSE_A_PROCESS = """
import os, sys, torch
rank = 0 if os.fork() else 1
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
torch.distributed.all_reduce(torch.zeros(1))
if rank == 1:
    os._exit(0)
try:
    while True:
        torch.distributed.all_reduce(torch.zeros(1))
except RuntimeError as error:
    print(error, flush=True)
os._exit(0)
"""


@pytest.mark.thorough
def test_the_error_of_an_exchange_with_a_process_that_ended_is_known(tmp_path):
    words = [sys.executable, "-c", LOSE_A_PROCESS, tmp_path / "store"]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert text
    assert private_api.is_lost_process(RuntimeError(text))


def test_other_faults_of_an_exchange_are_not_lost_processes():
    closed = torch.distributed.DistNetworkError
    assert private_api.is_lost_process(closed("Connection was likely closed. Did the remote server shutdown?"))
    for kind in (RuntimeError, OSError, torch.distributed.DistBackendError, torch.distributed.DistStoreError):
        assert not private_api.is_lost_process(kind("NCCL error: unhandled cuda error, out of memory"))


def test_trl_makes_and_names_references_by_known_functions():
    module = pytest.importorskip("trl.trainer.utils")
    makes, names = (getattr(module, name) for name in (private_api.TRL_MAKES_REFERENCES, private_api.TRL_NAMES_MODELS))
    assert next(iter(inspect.signature(makes).parameters)) == "model_id"
    assert list(inspect.signature(names).parameters) == ["config"]


def test_data_sets_with_other_content_have_other_fingerprints(tmp_path):
    file = tmp_path / "text.txt"
    found = []
    for text in ("one\n", "two\n", "one\n"):
        file.write_text(text)
        found.append(private_api.fingerprint_of(datasets.Dataset.from_dict({"text": [text]})))
    assert found[0] != found[1]
    assert found[0] == found[2]


def test_bitsandbytes_has_the_switch_for_its_kernel_without_gradients():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear4bit(64, 64)
    assert hasattr(layer, "support_avx512bf16_for_cpu")
    source = inspect.getsource(bitsandbytes.nn.Linear4bit)
    assert "packing_format_for_cpu" in source
    layer.to("cpu")
    private_api.keep_gradients_of_nf4(layer)
    assert layer.support_avx512bf16_for_cpu is False
