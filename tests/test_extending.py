"""A dynamics and a model family that are defined here, in one place each, and registered by one line.

Nothing else of the library is touched: they are used end to end.
"""

import ast
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import revformers as rf
from revformers import dynamics
from revformers.dynamics.base import Coefficients
from revformers.models import families
from revformers.models.discovery import find_stack
from revformers.models.families import LAYOUTS
from revformers.models.families.layout import BlockLayout, Branch
from tests.tiny_models import batch, tiny

# A dynamics


@dataclass(frozen=True)
class Overrelaxed(rf.Dynamics):
    """p[l+1] = -a p[l-1] + (1 + a) p[l] + f_l(p[l])."""

    blend: float = 0.5

    name = "overrelaxed"

    def coefficients(self, layer):
        blend = Fraction(self.blend)
        return Coefficients(previous=-blend, current=1 + blend, update=1.0)

    @property
    def recurrence(self):
        return f"p[l+1] = -{self.blend} p[l-1] + {1 + self.blend} p[l] + f(p[l])"


# A family: parallel branches, a norm of its own, and names that no family of transformers has


class RiverConfig(transformers.PreTrainedConfig):
    model_type = "river"
    vocab_size: int = 128
    hidden_size: int = 32
    num_hidden_layers: int = 4


class Mixing(nn.Module):
    """Every token reads the mean of those before it."""

    def __init__(self, width):
        super().__init__()
        self.values, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, stream):
        counts = torch.arange(1, stream.shape[1] + 1, device=stream.device)[:, None]
        return self.out(torch.tanh(self.values(stream).cumsum(1) / counts))


class Bank(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, stream):
        return self.down(nn.functional.silu(self.up(stream)))


class Reach(nn.Module):
    """The layer; `strength` multiplies both branches."""

    def __init__(self, config):
        super().__init__()
        self.calm, self.mixing, self.bank = nn.LayerNorm(32), Mixing(config.hidden_size), Bank(config.hidden_size)
        self.strength = 0.7

    def forward(self, stream):
        calm = self.calm(stream)
        return stream + self.mixing(calm) * self.strength + self.bank(calm) * self.strength


class RiverPreTrained(transformers.PreTrainedModel):
    config_class = RiverConfig
    base_model_prefix = "model"


class RiverModel(RiverPreTrained):
    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.reaches = nn.ModuleList(Reach(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def forward(self, input_ids, **_):
        stream = self.embedding(input_ids)
        for reach in self.reaches:
            stream = reach(stream)
        return BaseModelOutputWithPast(last_hidden_state=stream)

    def get_input_embeddings(self):
        return self.embedding


class RiverForCausalLM(RiverPreTrained):
    def __init__(self, config):
        super().__init__(config)
        self.model, self.head = RiverModel(config), nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids, labels=None, **_):
        logits = self.head(self.model(input_ids).last_hidden_state)
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits)


LAYOUT = rf.BlockLayout(
    rf.Branch("mixing", before="calm", scale="strength"),
    rf.Branch("bank", before="calm", scale="strength"),
    parallel=True,
)


@pytest.fixture(autouse=True, scope="module")
def registered():
    dynamics.register(Overrelaxed)
    rf.register_layout(Reach, LAYOUT)
    # As for every model of one's own in transformers, reversible or not.
    transformers.AutoConfig.register("river", RiverConfig)
    transformers.AutoModelForCausalLM.register(RiverConfig, RiverForCausalLM)
    yield
    del dynamics.DYNAMICS["overrelaxed"]


def river():
    torch.manual_seed(0)
    return RiverForCausalLM(RiverConfig())


def test_a_dynamics_trains_exactly_and_is_saved_and_loaded(tmp_path):
    model = rf.make_reversible(tiny("llama"), Overrelaxed(0.25, readout="mean"))
    report = rf.verify_gradients(model, batch(model))
    assert report.bit_exact
    assert report.recurrence == "p[l+1] = -0.25 p[l-1] + 1.25 p[l] + f(p[l])"
    assert rf.describe(model).bits == 2
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.model._reversible_stack.dynamics == Overrelaxed(0.25, readout="mean")
    with torch.no_grad():
        inputs = batch(model)["input_ids"]
        assert torch.equal(loaded.eval()(inputs).logits, model.eval()(inputs).logits)


def test_a_recipe_may_name_it():
    assert dynamics.create("overrelaxed", blend=0.25) == Overrelaxed(0.25)
    with pytest.raises(ValueError, match="has no option 'bland'; it takes blend, granularity, start, readout"):
        dynamics.create("overrelaxed", bland=0.25)


def test_a_name_belongs_to_one_dynamics():
    assert dynamics.register(Overrelaxed) is Overrelaxed, "again, as where a notebook runs a cell twice"
    with pytest.raises(ValueError, match="The name 'midpoint' belongs to Midpoint; give Other another one"):
        dynamics.register(type("Other", (Overrelaxed,), {"name": "midpoint"}))


@pytest.mark.parametrize(
    "steps", [rf.Midpoint(), rf.Hamiltonian(), Overrelaxed(granularity="branch")], ids=lambda d: d.name
)
def test_a_family_trains_exactly_and_is_saved_and_loaded(steps, tmp_path):
    model = rf.make_reversible(river(), steps)
    inputs = {"input_ids": torch.arange(40).reshape(2, 20)}
    assert rf.verify_gradients(model, inputs).bit_exact
    model.save_pretrained(tmp_path)
    for load in (transformers.AutoModelForCausalLM.from_pretrained, rf.from_pretrained):
        with torch.no_grad():
            assert torch.equal(load(tmp_path)(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("granularity", ["block", "branch"])
def test_the_steps_of_a_family_are_its_layers(granularity):
    """Both branches read one state here, which steps by branch cannot: the second reads the first's result."""
    inputs = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        expected = river()(inputs).logits
        found = rf.make_reversible(river(), rf.Residual(granularity=granularity), "store")(inputs).logits
    assert torch.allclose(found, expected, atol=1e-5) == (granularity == "block")


def test_its_mlps_run_in_tiles_and_its_loss_in_chunks():
    model, inputs = river(), torch.arange(40).reshape(2, 20)
    expected = model(inputs, labels=inputs).loss
    rf.set_mlp_tiles(model, 7)
    assert torch.allclose(model(inputs, labels=inputs).loss, expected)


def test_a_layer_with_another_forward_needs_another_layout():
    class Flood(Reach):
        def forward(self, stream):
            return 2 * super().forward(stream)

    model = river()
    for layer in find_stack(model).layers:
        layer.__class__ = Flood
    with pytest.raises(
        rf.NotReversibleError, match=r"where Flood splits .* give its layout to revformers\.register_layout"
    ):
        rf.make_reversible(model, rf.Hamiltonian())


def files_that_name(names):
    """The files of the package whose code names one of these, as a variable, an import or a text."""
    package = Path(rf.__file__).parent
    found = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            told = (getattr(node, attribute, None) for attribute in ("id", "attr", "name", "value"))
            if any(isinstance(value, str) and value in names for value in told):
                found.add(file.relative_to(package).as_posix())
    return found


@pytest.mark.parametrize("kind", [rf.Leapfrog, rf.Hamiltonian], ids=lambda kind: kind.name)
def test_a_dynamics_of_the_library_is_one_file_and_its_registration(kind):
    own = f"dynamics/{kind.name}.py"
    assert files_that_name({kind.__name__}) == {own, "dynamics/__init__.py", "__init__.py"}


def test_a_family_of_the_library_is_one_line():
    assert files_that_name(LAYOUTS.keys()) <= {"models/families/__init__.py"}


@pytest.mark.parametrize("policy", [rf.Store, rf.Offload, rf.Rebuild], ids=lambda policy: policy.name)
def test_an_activation_policy_of_the_library_is_one_file_and_its_registration(policy):
    """Other files may use a policy; none but the registration knows where it is."""
    package = Path(rf.__file__).parent
    importing = {
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == policy.__module__
    }
    assert importing == {"activations/__init__.py"}


@pytest.mark.parametrize("dynamics", [rf.Hamiltonian(), rf.Midpoint()], ids=lambda dynamics: dynamics.granularity)
@pytest.mark.parametrize("named", ["mixer", "mlp.up_proj"])
def test_a_layout_that_names_what_the_layer_has_not_is_refused_at_the_call(named, dynamics, monkeypatch):
    monkeypatch.setitem(families._REGISTERED, LlamaDecoderLayer, (BlockLayout(Branch("self_attn"), Branch(named)),))
    model = tiny("llama")
    for call in (lambda: rf.make_reversible(model, dynamics), lambda: rf.set_mlp_tiles(model, 5)):
        with pytest.raises(rf.NotReversibleError, match=f"names '{named}', which the layer does not have"):
            call()


def test_mistakes_of_extensions_are_refused_where_they_are_made():
    with pytest.raises(TypeError, match="takes a tuple of names as after"):
        Branch("mlp", after="post")
    with pytest.raises(TypeError, match="takes the class of the layers"):
        rf.register_layout("LlamaDecoderLayer", BlockLayout(Branch("attn"), Branch("mlp")))
    for layouts in ((), (None,), ("pre_norm",), ((LAYOUT,),)):
        with pytest.raises(TypeError, match=r"takes one revformers\.BlockLayout or several after the class, not "):
            rf.register_layout(LlamaDecoderLayer, *layouts)
    with pytest.raises(TypeError, match="is an exact fraction, such as"):
        Coefficients(0.5, Fraction(1, 2), 1.0)

    class Forgetful(rf.Midpoint):
        name = "forgetful"

        def coefficients(self, layer):
            return Coefficients(Fraction(layer), Fraction(1), 1.0)

    with pytest.raises(ValueError, match="Forgetful forgets the previous state in layer 0, where a = 0"):
        rf.make_reversible(tiny("llama"), Forgetful())
