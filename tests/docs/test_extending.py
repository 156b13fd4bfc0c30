"""The files of docs/extending are complete: each works with every call, and what its page says of it holds."""

import runpy

import pytest
import torch
import transformers

import revformers as rf
from lab.tiny import tiny_batch, tiny_model
from revformers.activations import ACTIVATIONS
from revformers.dynamics import DYNAMICS
from revformers.models import families
from tests.docs.pages import PAGES, ROOT, blocks

EXTENDING = ROOT / "docs/extending"


@pytest.fixture(autouse=True)
def _registries(monkeypatch):
    """Registrations end with the test."""
    before = [(registry, dict(registry)) for registry in (ACTIVATIONS, DYNAMICS)]
    monkeypatch.setattr(families, "_REGISTERED", {})
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


def llama():
    torch.manual_seed(0)
    return tiny_model(transformers.LlamaForCausalLM).train()


def run_page(name):
    """Run the file of a page, then the other blocks of the page behind it, and return their names."""
    names = runpy.run_path(str(EXTENDING / f"{name.replace('-', '_')}.py"))
    names |= {"model": llama(), "batch": tiny_batch(llama())}
    included, *others = blocks(f"docs/extending/{name}.md", "python")
    assert included == (EXTENDING / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    assert others
    exec("\n".join(others), names)
    return names


def gradients(model, batch):
    model.zero_grad()
    model(**batch).loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_a_dynamics_trains_exactly_and_is_saved_as_itself(tmp_path):
    names = run_page("add-a-dynamics")
    model, kind = names["model"], names["DampedLeapfrog"]
    assert kind("1/4").side_information_bits(0) == 1
    assert kind(0).side_information_bits(0) == 0
    assert kind(0).coefficients(0) == rf.Leapfrog().coefficients(0)
    with pytest.raises(ValueError, match="from 0 to below 1"):
        kind(1)
    model.save_pretrained(tmp_path)
    again = rf.from_pretrained(tmp_path)
    assert rf.describe(again).recurrence == "p[l+1] = 7/4 p[l] - 3/4 p[l-1] + f(p[l])"


@pytest.mark.parametrize("dynamics", [rf.Midpoint(), rf.BlendedMidpoint("1/4"), rf.Residual()])
def test_a_policy_gives_the_stored_gradients_to_the_bit(dynamics):
    names = run_page("add-a-policy")
    batch, model = names["batch"], rf.make_reversible(llama(), dynamics, activations=rf.Store())
    stored = gradients(model, batch)
    rf.set_activations(model, names["CheckpointInFiles"]())
    assert all(torch.equal(one, other) for one, other in zip(gradients(model, batch), stored, strict=True))


def test_a_policy_is_known_by_its_name_and_refuses_a_changed_weight(tmp_path):
    names = run_page("add-a-policy")
    model, batch = names["model"], names["batch"]
    rf.set_activations(model, "checkpoint_in_files")
    assert "in files" in str(rf.describe(model))
    model.save_pretrained(tmp_path)
    assert "in files" in str(rf.describe(rf.from_pretrained(tmp_path)))
    loss = model(**batch).loss
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.data.mul_(2)
    with pytest.raises(rf.RebuildMismatchError, match="Layer 1"):
        loss.backward()


def test_a_policy_is_saved_with_its_option(tmp_path):
    names = run_page("add-a-policy")
    policy = names["CheckpointInFiles"](str(tmp_path))
    rf.make_reversible(llama(), rf.Midpoint(), activations=policy).save_pretrained(tmp_path / "model")
    loaded = rf.from_pretrained(tmp_path / "model")
    assert rf.describe(loaded).activations == f"checkpoint_in_files:{tmp_path}"
    loaded(**names["batch"]).loss.backward()


def test_a_family_steps_by_branch():
    pytest.importorskip("transformers", minversion="5.24", reason="5.17 does not have the family of the page")
    with pytest.raises(rf.NotReversibleError, match="steps by branch"):
        rf.make_reversible(tiny_model(transformers.Apertus1p5TextForCausalLM), rf.Hamiltonian())(
            **tiny_batch(tiny_model(transformers.Apertus1p5TextForCausalLM))
        )
    assert run_page("add-a-family")["model"]


def test_every_page_of_the_directory_has_a_file():
    pages = {page for page in PAGES if page.startswith("docs/extending/")}
    assert {f"docs/extending/{path.stem.replace('_', '-')}.md" for path in EXTENDING.glob("*.py")} == pages
