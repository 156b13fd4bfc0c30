"""One of two processes with a shard of a small model: ``torchrun --nproc-per-node 2 -m lab.studies.faults.pair NAME``.

A scenario compares its gradients with those of one process. What revformers refuses is a line of `REFUSED`; any other
error ends the process with a traceback.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import LlamaForCausalLM

import revformers as rf
from lab.sharding import tensor_parallel, whole
from lab.studies.faults.fault import raised_by_revformers
from lab.tiny import tiny_batch, tiny_model

ROUNDING = 1e-5
"""Largest difference of a gradient from that of one process, which adds up in another order."""

REFUSED = "Refused: "
"""The beginning of a line about an exception of revformers."""

EQUAL = "the gradients of one process, to rounding"


def _made(dynamics: rf.Dynamics | None = None) -> Any:
    torch.manual_seed(0)
    return rf.make_reversible(tiny_model(LlamaForCausalLM), dynamics or rf.BlendedMidpoint("1/4"))


def _gradients(model: Any, steps: int = 1) -> dict[str, Tensor]:
    for _ in range(steps):
        model.zero_grad()
        model(**tiny_batch(model)).loss.backward()
    return {name: whole(one.grad).clone() for name, one in model.named_parameters()}


def _tensor_parallel_chunked_head(model: Any) -> Any:
    rf.set_head_loss(model, rf.HeadLoss(chunk=7))
    return tensor_parallel(model)


def _tensor_parallel_budget(model: Any) -> Any:
    rf.set_activations(model, rf.Budget(2 * rf.smallest_budget(model, 2, 16)))
    return tensor_parallel(model)


def _fully_sharded(model: Any, **options: Any) -> Any:
    for layer in model.model.layers:
        fully_shard(layer, **options)
    return fully_shard(model)


def _output_dtype(model: Any) -> Any:
    return _fully_sharded(model, mp_policy=MixedPrecisionPolicy(torch.bfloat16, output_dtype=torch.float32))


def _stage_of_a_pipeline(model: Any) -> Any:
    stage = tiny_model(LlamaForCausalLM)
    del stage.model.layers[2:]
    return rf.make_reversible(stage, rf.Midpoint())


Shard = Callable[[Any], Any]

SCENARIOS: dict[str, tuple[Shard, rf.Dynamics | None]] = {
    "tensor-parallel-chunked-head": (_tensor_parallel_chunked_head, None),
    "tensor-parallel-budget": (_tensor_parallel_budget, None),
    "fsdp2-two-evaluations": (_fully_sharded, rf.TwoEvaluationMidpoint("1/4")),
    "fsdp2-output-dtype": (_output_dtype, None),
    "stage-of-a-pipeline": (_stage_of_a_pipeline, None),
}


def main(name: str) -> int:
    """Run a scenario in this process; return 0 if its gradients are those of one process."""
    shard, dynamics = SCENARIOS[name]
    distributed.init_process_group("gloo")
    expected = _gradients(_made(dynamics))
    try:
        found = _gradients(shard(_made(dynamics)), steps=2)  # a budget observes the first
    except Exception as error:
        if not raised_by_revformers(error):
            raise
        print(f"{REFUSED}{type(error).__name__}: {' '.join(str(error).split())}", flush=True)
        return 2
    finally:
        distributed.destroy_process_group()
    worst = max((found[name] - expected[name]).abs().max().item() for name in expected)
    print(EQUAL if worst <= ROUNDING else f"gradients that differ by {worst:.3g}")
    return int(not worst <= ROUNDING)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
