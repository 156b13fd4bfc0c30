import contextlib
import gc
import weakref
from unittest.mock import Mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import DeviceType
from torch.overrides import TorchFunctionMode

import revformers as rf
from revformers.activations import overlapped
from revformers.activations.offload import OffloadedPass
from revformers.activations.overlapped import OverlappedInputs
from revformers.engine.states import StatePair
from tests.activations.late_copies import LateCopies
from tests.engine.network import DEPTH, Network, equal

DYNAMICS = rf.Midpoint()


@pytest.fixture
def copies(monkeypatch):
    """Let Offload move its inputs by late copies, on a CPU."""
    late = LateCopies()
    monkeypatch.setattr(
        rf.Offload, "bind", lambda self, _: lambda states, _: OffloadedPass(states, OverlappedInputs(late))
    )
    return late


def pair(network):
    """Return the losses of one forward pass with stored activations and of one with offloaded inputs."""
    return network.run(DYNAMICS, "store"), network.run(DYNAMICS, "offload")


def test_copies_overlap_with_the_next_layer_and_with_the_layer_behind(copies):
    network = Network(dropout=0.3)
    stored, loss = pair(network)
    assert copies.events == [
        *("to host 0", "to host 1"),
        *("wait to host 0", "to host 2", "wait to host 1", "to host 3"),
        *("wait to host 2", "to host 4", "wait to host 3", "to host 5"),
    ]
    copies.events.clear()
    assert equal(network.gradients(loss), network.gradients(stored))
    assert copies.events == [
        *("wait to host 5", "wait to host 4"),  # both are still on the device
        *("to device 3", "wait to device 3", "to device 2", "wait to device 2"),
        *("to device 1", "wait to device 1", "to device 0", "wait to device 0"),
    ]
    assert copies.most_on_device == 2


@pytest.mark.parametrize("direction", ["to host", "to device"])
def test_without_a_wait_the_gradients_are_refused(copies, monkeypatch, direction):
    wait = LateCopies.wait

    def skip(self, copy):
        return copy.tensor if copy.finished[0].startswith(direction) else wait(self, copy)

    network = Network()
    with monkeypatch.context() as patch:
        patch.setattr(LateCopies, "wait", skip)
        loss = network.run(DYNAMICS, "offload")
        with pytest.raises(rf.RebuildMismatchError):
            network.gradients(loss)


def test_any_order_of_backward_passes_gives_the_stored_gradients(copies):
    network = Network(dropout=0.3)
    stored, loss = (network.run(DYNAMICS, policy) for policy in ("store", "offload"))
    expected, middle = network.gradients(stored, retain_graph=True), list(network.layers[3].parameters())
    above = torch.autograd.grad(stored, middle)
    for _ in range(2):
        assert equal(torch.autograd.grad(loss, middle, retain_graph=True), above)
        assert equal(network.gradients(loss, retain_graph=True), expected)
    assert equal(network.gradients(loss), expected)
    assert copies.most_on_device == 2


def test_tensors_may_be_asked_for_in_any_order(copies):
    network, nodes = Network(), []
    for layer in network.layers:
        layer[2].register_forward_hook(lambda _, __, output: nodes.append(output.grad_fn))
    stored, loss = pair(network)
    before, after = nodes[:DEPTH], nodes[DEPTH:]
    for layer in (1, 4, 0, 5, 5, 2):
        assert torch.equal(after[layer]._saved_self, before[layer]._saved_self)
    assert equal(network.gradients(loss), network.gradients(stored))
    assert copies.most_on_device == 2


def test_passes_that_take_turns_or_are_abandoned_do_not_disturb_each_other(copies):
    network = Network(dropout=0.3)
    expected = network.gradients(network.run(DYNAMICS, "store", 1) + network.run(DYNAMICS, "store", 2))
    network.run(DYNAMICS, "offload", 3)
    one, dropped, other = (network.run(DYNAMICS, "offload", seed) for seed in (1, 3, 2))
    torch.autograd.grad(dropped, list(network.layers[4].parameters()), retain_graph=True)
    del dropped
    assert equal(network.gradients(one + other), expected)


def test_second_derivatives(copies):
    network = Network()
    second = []
    for loss in pair(network):
        first = network.gradients(loss, create_graph=True)
        second.append(network.gradients(sum(gradient.square().sum() for gradient in first)))
    assert equal(*second)


def test_frozen_layers_are_not_copied(copies):
    network = Network()
    network.embedding.requires_grad_(False)
    network.layers[:3].requires_grad_(False)
    weights = list(network.layers[3:].parameters())
    stored, loss = pair(network)
    assert sum(event.startswith("to host") for event in copies.events) == 3
    assert equal(*(torch.autograd.grad(loss, weights) for loss in (stored, loss)))


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_an_input_that_is_written_to_while_it_may_be_copied_is_refused(copies, layers):
    hidden = torch.ones(2, 3)
    inputs = OverlappedInputs(copies)
    source = inputs.keep(hidden)
    others = [inputs.keep(torch.ones(2, 3)) for _ in range(layers)]
    hidden.zero_()
    if layers < overlapped.LEAVING:
        assert source() is None
        assert source() is None
    else:  # a third copy began when the first had ended
        assert torch.equal(source(), torch.ones(2, 3))
    assert all(torch.equal(other(), torch.ones(2, 3)) for other in others)


def test_the_graph_alone_holds_the_inputs_and_frees_them(copies, monkeypatch):
    kept = []
    make = overlapped.KeptInput.__init__

    def remember(self, *arguments):
        make(self, *arguments)
        kept.append(weakref.ref(self))

    monkeypatch.setattr(overlapped.KeptInput, "__init__", remember)
    network = Network()
    loss, dropped = network.run(DYNAMICS, "offload"), network.run(DYNAMICS, "offload")
    gc.disable()
    try:
        del dropped
        assert [one() is not None for one in kept] == [True] * DEPTH + [False] * DEPTH
        network.gradients(loss)
        assert not any(one() for one in kept), "without the garbage collector"
    finally:
        gc.enable()


def test_on_cuda_a_stream_of_its_own_copies_in_pinned_memory_after_what_was_computed(monkeypatch):
    """The tensors are fake and so is the stream: only the order of the calls is tested."""
    calls, device = [], torch.device("cuda", 0)
    computing = Mock()
    computing.wait_event.side_effect = lambda event: calls.append("compute waits")
    stream = Mock()
    stream.wait_stream.side_effect = lambda other: calls.append("copies wait" if other is computing else "error")
    stream.record_event.side_effect = lambda: calls.append("event")

    class Calls(TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), options=None):
            options = options or {}
            if function is torch.Tensor.copy_:
                calls.append(f"copy to {arguments[0].device}")
                return arguments[0]
            if function is torch.empty_like:
                calls.append("pinned memory" if options.get("pin_memory") else f"memory of {options['device']}")
                return torch.empty(arguments[0].shape, dtype=arguments[0].dtype, device=options["device"])
            return function(*arguments, **options)

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: computing)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    with FakeTensorMode():
        hidden = torch.empty(2, 3, 4, device=device, dtype=torch.bfloat16)
        begin = rf.Offload().bind(1)
        with Calls():
            sources = [begin(StatePair.empty(device), [])._keep(hidden) for _ in range(2)]
            assert calls == ["pinned memory", "copies wait", "copy to cpu", "event"] * 2
            calls.clear()
            assert sources[0]() is hidden
            assert calls == ["compute waits"]
            calls.clear()
            again = sources[0]()
        # The memory of the copy belongs to the stream: what used it before was issued before it was allocated.
        assert calls == ["memory of cuda:0", "copies wait", "copy to cuda:0", "event", "compute waits"]
        assert (again.device, again.dtype, again.shape) == (device, torch.bfloat16, hidden.shape)


def test_each_stream_that_computes_has_copies_of_its_own(monkeypatch):
    """Memory that copies use again is safe in the order of one computing stream: another might still read it."""
    computing, device = ["one", "other", "one"], torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Mock())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: computing[0])
    begin, used = rf.Offload().bind(1), []
    with FakeTensorMode():
        while computing:
            used.append(begin(StatePair.empty(device), [])._inputs._copies)
            computing.pop(0)
    assert used[0] is used[2] is not used[1]


def gigabytes(count):
    """Layers' inputs whose copies take milliseconds."""
    return [torch.randn(2**27 // count, device="cuda") for _ in range(count)]


@pytest.mark.gpu
def test_on_a_gpu_inputs_lie_in_pinned_memory_that_later_steps_use_again():
    inputs = OverlappedInputs(overlapped.StreamCopies(torch.device("cuda", 0)))
    places = []
    for _ in range(3):
        sources = [inputs.keep(hidden) for hidden in gigabytes(4)]
        on_host = [source.args[0].on_host.tensor for source in sources]
        assert all(tensor.is_pinned() for tensor in on_host)
        places.append({tensor.data_ptr() for tensor in on_host})
        assert all(source().is_cuda for source in reversed(sources))
        torch.cuda.synchronize()
        del sources, on_host
    assert places[1] == places[2]


@pytest.mark.gpu
def test_on_a_gpu_copies_run_beside_the_computation():
    matrix = torch.randn(4096, 4096, device="cuda")
    inputs = OverlappedInputs(overlapped.StreamCopies(torch.device("cuda", 0)))

    def step():
        sources = []
        for hidden in gigabytes(8):
            sources.append(inputs.keep(hidden))
            for _ in range(8):
                matrix @ matrix
        del hidden
        for source in reversed(sources):
            source()
            for _ in range(8):
                matrix @ matrix

    step()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
        step()
        torch.cuda.synchronize()
    on_device = [event for event in recorded.events() if event.device_type == DeviceType.CUDA]
    spans = [(event.name, event.time_range.start, event.time_range.end) for event in on_device]
    for direction in ("DtoH", "HtoD"):
        copied = [(start, end) for name, start, end in spans if direction in name and end - start > 100]
        computed = [(start, end) for name, start, end in spans if "mem" not in name.lower()]
        together = sum(max(0, min(a[1], b[1]) - max(a[0], b[0])) for a in copied for b in computed)
        assert together > 0.5 * sum(end - start for start, end in copied) > 0, direction


@pytest.mark.gpu
def test_on_a_gpu_two_inputs_are_on_the_device_beyond_the_current_one():
    inputs = OverlappedInputs(overlapped.StreamCopies(torch.device("cuda", 0)))
    size = 64 * 2**20
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    sources = [inputs.keep(torch.full((size // 4,), float(number), device="cuda")) for number in range(12)]
    for number, source in reversed(list(enumerate(sources))):
        assert source()[-1].item() == number
    assert torch.cuda.max_memory_allocated() - before <= 3 * size + 2**20
