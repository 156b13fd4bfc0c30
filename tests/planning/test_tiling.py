import pytest

from revformers.activations import Rebuild
from revformers.dynamics import Midpoint
from revformers.planning.step import step_memory
from revformers.planning.tiling import can_tile
from revformers.setup import Setup, Workload
from tests.tiny_models import tiny


@pytest.mark.parametrize(
    ("family", "training", "expected"),
    [
        ("llama", "full", True),
        ("llama", "lora", True),
        ("llama", "qlora", True),
        ("gpt2", "lora", True),
        ("mixtral", "full", False),
        ("mixtral", "lora", False),
        ("opt", "full", False),  # its MLP is no module
        ("MptForCausalLM", "full", False),  # no layout
    ],
)
def test_models_can_have_tiles_if_a_step_with_tiles_can_be_planned(family, training, expected):
    given = Workload(tiny(family).config, training=training, sequence_length=8)
    assert can_tile(given) == expected
    tiled = Setup(Midpoint(), Rebuild(), mlp_tile=4)
    if expected:
        assert step_memory(given, tiled, 1, 8).device.total
    else:
        with pytest.raises(ValueError, match="MLP"):
            step_memory(given, tiled, 1, 8)


def test_one_layer_without_a_known_mlp_is_enough():
    dense, mixed = (tiny("qwen3_moe", mlp_only_layers=layers).config for layers in ([0, 1, 2, 3], [0, 1, 2]))
    assert can_tile(Workload(dense))
    assert not can_tile(Workload(mixed))


def test_a_step_that_cannot_be_planned_at_all_is_refused():
    with pytest.raises(ValueError, match="under autocast"):
        can_tile(Workload(tiny("llama").config, precision="bfloat16_autocast"))
