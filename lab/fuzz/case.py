"""One random set-up, drawn from a seed."""

import dataclasses
import random
from dataclasses import dataclass
from typing import Any

from lab.fuzz.events import HARMFUL, HARMLESS
from lab.fuzz.orders import ORDERS
from revformers.dynamics import BlendedMidpoint, Dynamics, Hamiltonian, Leapfrog, Midpoint, Residual
from revformers.dynamics.base import Granularity
from revformers.dynamics.two_evaluation_midpoint import TwoEvaluationMidpoint
from revformers.models.update_predictor import Feature

_CHOICES: dict[str, tuple[str, ...]] = {
    "dtype": ("float32", "bfloat16", "float64"),
    "attention": ("sdpa", "eager"),
    "adapters": ("none", "fresh", "trained"),
    "frozen": ("nothing", "embedding", "first layers", "some layers", "norms", "half of all"),
    "padding": ("none", "left", "right", "4-d mask", "packed"),
    "order": tuple(ORDERS),
    "between": (*HARMLESS, *HARMFUL),
    "states": ("auto", "auto:12", "int32", "int32:20", "int64"),
}

FAMILIES = (  # noqa: SIM905 - a list of so many would be a page
    "AfmoeForCausalLM ApertusForCausalLM ArceeForCausalLM BartForCausalLM BioGptForCausalLM "
    "BitNetForCausalLM BloomForCausalLM CodeGenForCausalLM Cohere2ForCausalLM CohereForCausalLM "
    "CTRLLMHeadModel CwmForCausalLM DeepseekV2ForCausalLM DeepseekV3ForCausalLM DiffLlamaForCausalLM "
    "Ernie4_5ForCausalLM Exaone4ForCausalLM FalconForCausalLM FalconH1ForCausalLM FlexOlmoForCausalLM "
    "Gemma2ForCausalLM Gemma3ForCausalLM GemmaForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM "
    "GlmForCausalLM GPT2LMHeadModel GPTBigCodeForCausalLM GPTJForCausalLM GPTNeoForCausalLM "
    "GPTNeoXForCausalLM GptOssForCausalLM GraniteForCausalLM GraniteMoeForCausalLM HeliumForCausalLM "
    "JetMoeForCausalLM Lfm2ForCausalLM LlamaForCausalLM Mamba2ForCausalLM MambaForCausalLM "
    "MiniCPM3ForCausalLM MistralForCausalLM MixtralForCausalLM MptForCausalLM NemotronForCausalLM "
    "Olmo2ForCausalLM OlmoeForCausalLM OlmoForCausalLM OPTForCausalLM PersimmonForCausalLM "
    "Phi3ForCausalLM PhiForCausalLM Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen3ForCausalLM "
    "Qwen3MoeForCausalLM RobertaForCausalLM SmolLM3ForCausalLM StableLmForCausalLM Starcoder2ForCausalLM "
    "XGLMForCausalLM"
).split()
"""Decoders with every kind of layer: dense, experts, state spaces, convolutions; pre-norm, post-norm, parallel."""

OF_ANY_WIDTH = ("LlamaForCausalLM", "GPT2LMHeadModel")
"""Families that are drawn more often than others, and in several widths; in others the widths depend on each other."""


@dataclass(frozen=True)
class Case:
    """One random set-up; every field is drawn.

    Attributes:
        seed: seed of the set-up.
        family: class of the model.
        layers: number of layers.
        width: width of a hidden state.
        heads: number of attention heads.
        sharpness: range of the initial weights, as `initializer_range`, if the family has it.
        perturbation: standard deviation of the noise that is added to every weight, including norms and biases.
        dtype: dtype of the weights.
        autocast: whether the forward pass runs in bfloat16 under autocast.
        dropout: probability of every dropout.
        attention: attention kernel.
        adapters: "none", "fresh" LoRA, whose B is zero, or "trained".
        frozen: parameters without a gradient.
        dynamics: the recurrence, its start and its readout.
        predictors: input of the update predictors, or empty; their weights are random.
        policy: the activation policy; a budget is a multiple of the smallest.
        batch: number of sequences and tokens.
        padding: "none", "left" or "right", a "4-d mask" of the caller's, or "packed" documents.
        tile: number of tokens in a tile of the MLPs; 0 for no tiles.
        chunk: number of tokens in a chunk of the head's loss; 0 for the model's own loss.
        compiled: whether the layers are compiled.
        order: order of the backward passes.
        between: event between the passes.
        late: whether comparisons are checked at the end of a backward pass, as on a device.
        states: the format of the states.

    """

    seed: int
    family: str
    layers: int
    sharpness: float
    perturbation: float
    dtype: str
    autocast: bool
    dropout: float
    attention: str
    adapters: str
    frozen: str
    dynamics: dict[str, Any]
    predictors: tuple[Feature, ...]
    policy: str
    batch: tuple[int, int]
    padding: str
    tile: int
    chunk: int
    compiled: bool
    order: str
    between: str
    width: int = 64
    heads: int = 4
    late: bool = False
    states: str = "auto"

    def __post_init__(self) -> None:
        """Refuse values that no set-up has, which would otherwise be silently left out."""
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is one of {', '.join(choices)}, not {getattr(self, name)!r}.")

    def __str__(self) -> str:
        """Describe the set-up in one line, without default values."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if value != _USUAL.get(name, "")}
        return ", ".join(f"{name}={value!r}" for name, value in values.items())


_USUAL = {
    "autocast": False,
    "dropout": 0.0,
    "attention": "sdpa",
    "adapters": "none",
    "frozen": "nothing",
    "predictors": (),
    "padding": "none",
    "tile": 0,
    "chunk": 0,
    "compiled": False,
    "order": "once",
    "between": "nothing",
    "width": 64,
    "heads": 4,
    "late": False,
    "states": "auto",
}


def draw_case(seed: int) -> Case:
    """Return the set-up of a seed."""
    draw = random.Random(seed)
    layers = draw.choice([1, 2, 3, 4, 4, 6, 9])
    dynamics = _draw_dynamics(draw, layers)
    block = dynamics.granularity == "block"
    forms: list[tuple[Feature, ...]] = [
        (),
        (),
        (),
        ("state",),
        ("state", "update"),
        ("state", "update", "previous_update"),
    ]
    reversible = dynamics.reversible
    # In some set-ups the recurrence can be computed without this library.
    plain = block and draw.random() < 0.2
    family = draw.choice(FAMILIES) if draw.random() < 0.7 else draw.choice(OF_ANY_WIDTH)
    case = Case(
        seed=seed,
        family=family,
        layers=layers,
        sharpness=draw.choice([0.02, 0.02, 0.1, 0.2, 0.5]),
        perturbation=draw.choice([0.0, 0.0, 0.05]),
        dtype="float64" if plain else draw.choice(["float32", "float32", "bfloat16", "float64"]),
        autocast=not plain and draw.random() < 0.15,
        dropout=0.0 if plain else draw.choice([0.0, 0.0, 0.1, 0.5]),
        attention=draw.choice(["sdpa", "sdpa", "eager"]),
        adapters=draw.choice(["none", "none", "none", "fresh", "trained"]),
        frozen=draw.choice(["nothing"] * 4 + ["embedding", "first layers", "some layers", "norms", "half of all"]),
        dynamics=dynamics.to_dict(),
        predictors=draw.choice(forms) if block and reversible and dynamics.evaluations_per_step == 1 else (),
        policy=_draw_policy(draw, reversible),
        batch=draw.choice([(1, 8), (2, 16), (2, 40), (3, 7), (1, 64), (2, 150)]),
        padding=draw.choice(["none", "none", "none", "left", "right", "4-d mask", "packed"]),
        tile=draw.choice([0, 0, 0, 0, 5, 16, 1000]),
        chunk=0 if plain else draw.choice([0, 0, 0, 8]),
        compiled=draw.random() < 0.005,
        order="once" if plain else draw.choice(["once"] * 8 + list(ORDERS)),
        between=draw.choice(sorted(HARMLESS)) if plain or draw.random() < 0.5 else draw.choice(list(HARMFUL)),
    )
    case = dataclasses.replace(case, late=draw.random() < 0.25)
    if family in OF_ANY_WIDTH:
        case = dataclasses.replace(case, width=draw.choice([16, 32, 64, 64, 96, 136]), heads=draw.choice([1, 2, 4, 4]))
    return case if plain else dataclasses.replace(case, states=draw.choice(["auto", "auto", *_CHOICES["states"]]))


def _draw_policy(draw: random.Random, reversible: bool) -> str:
    share = draw.choice([1.0, 1.2, 2.0, 3.0, 5.0, 12.0])
    policies = ["checkpoint", "offload", f"budget {share} checkpoint"]
    return draw.choice(policies + (["rebuild"] * 5 + [f"budget {share} rebuild"] * 3 if reversible else []))


def _draw_dynamics(draw: random.Random, layers: int) -> Dynamics:
    options: dict[str, Any] = {"readout": draw.choice(["last", "mean"]), "start": draw.choice(["repeat", "zero"])}
    step_size = draw.choice([0.25, 0.5, 1.0])
    granularity: Granularity = draw.choice(["block", "block", "branch"])
    blend = draw.choice(["1/256", "1/64", "1/16", "1/4", "1/2", "1", "3/2", "5/3", "2/3", "-1/2", "-1", "-5/4", "7/5"])
    kind = draw.choice(
        ["midpoint", "leapfrog", "hamiltonian", "blended", "blended", "random", "two", "residual", "mixed"]
    )
    if kind == "midpoint":
        return Midpoint(step_size=step_size, granularity=granularity, **options)
    if kind == "leapfrog":
        return Leapfrog(step_size=step_size, granularity=granularity, **options)
    if kind == "hamiltonian":
        return Hamiltonian(**options)
    if kind == "residual":
        return Residual()
    if kind == "random":
        return BlendedMidpoint(random_seed=draw.randrange(1000), step_size=step_size, **options)
    if kind == "two":
        return TwoEvaluationMidpoint(blend, step_size=step_size, **options)
    if kind == "mixed":
        blends = [draw.choice(["1/16", "1/2", "1", "4/3", "-2/3"]) for _ in range(layers)]
        return BlendedMidpoint(blends, step_size=[draw.choice([0.5, 1.0]) for _ in range(layers)], **options)
    return BlendedMidpoint(blend, step_size=step_size, granularity=granularity, **options)
