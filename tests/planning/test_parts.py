import contextlib

import pytest
from transformers import AutoConfig

from lab.bench.workload import llama_config
from revformers.engine.ops import cpu as plain
from revformers.head import chunked_sum
from revformers.planning import meta
from revformers.planning.methods import CHECKPOINT, STORE, rebuild
from revformers.planning.step import COUNTED, Workload, _model, _run, _step
from revformers.planning.work import work_of

CONFIG = AutoConfig.for_model(**llama_config(5, 128, 256, 1024))


class Everything:
    """Stands in for RememberedParts: every part runs every time."""

    def __init__(self, answers):
        pass

    def in_place(self):
        return contextlib.nullcontext()


# The last chunk of 3 x 300 tokens is smaller than the others.
@pytest.mark.parametrize(("batch", "tokens"), [(2, 512), (3, 300), (1, 20)])
@pytest.mark.parametrize("training", ["full", "lora"])
@pytest.mark.parametrize("method", [STORE, CHECKPOINT, rebuild(0), rebuild(2)], ids=lambda method: method.title)
def test_a_step_of_remembered_parts_takes_and_computes_what_the_whole_step_does(
    method, training, batch, tokens, monkeypatch
):
    if training == "lora":
        pytest.importorskip("peft")
    workload = Workload(CONFIG, training)

    def step():
        peak = _run(workload, method, 5, batch, tokens).peak()
        with meta.without_numbers(COUNTED):
            return peak, work_of(_step(_model(workload, method, 5), batch, tokens))

    remembered, work = step()
    operators = len(_run(workload, method, 5, batch, tokens).operators)
    monkeypatch.setattr(meta, "RememberedParts", Everything)
    whole, whole_work = step()
    assert remembered == whole
    assert work.operations == whole_work.operations
    # Numbers that a chunk returns are made in the place of being computed.
    assert work.time(100.0) == pytest.approx(whole_work.time(100.0), rel=1e-5)
    # What is compared is not the same.
    if method.reversible or tokens > 100:
        assert operators < len(_run(workload, method, 5, batch, tokens).operators)


def test_the_kernels_are_themselves_again_afterwards():
    def own():
        return plain.advance, plain.retreat, plain._read, chunked_sum._evaluate

    def fail():
        with meta.without_numbers(1):
            assert not set(before) & set(own())
            raise KeyError

    before = own()
    with pytest.raises(KeyError):
        fail()
    assert own() == before
