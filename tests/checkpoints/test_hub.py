import copy
import json

import peft
import pytest
import torch
from huggingface_hub import HfApi, RepoUrl
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

import revformers as rf
from revformers.checkpoints.card import MARKER
from revformers.checkpoints.marks import MODEL_TYPE
from revformers.models.parts import reversible_stack, update_predictors
from tests.conversion.test_convert import TEXT, smooth_llama
from tests.test_reversible import llama

PROMPT = {"input_ids": TEXT[:2], "attention_mask": torch.ones_like(TEXT[:2])}


@pytest.fixture(scope="module")
def converted():
    model = smooth_llama()
    rf.convert(model, 0.5, TEXT)
    return model


@pytest.fixture
def model(converted):
    return copy.deepcopy(converted)


class Hub:
    """Stands in for the hub: keeps what is uploaded, in `folder`, and every call."""

    def __init__(self, folder):
        self.folder = folder
        self.calls = {}
        self.card = None

    def create_repo(self, api, repo_id, **keywords):
        self.calls["create_repo"] = {"repo_id": repo_id} | keywords
        return RepoUrl(f"someone/{repo_id.split('/')[-1]}")

    def create_branch(self, api, repo_id, **keywords):
        self.calls["create_branch"] = {"repo_id": repo_id} | keywords

    def create_commit(self, api, repo_id, operations, **keywords):
        self.calls["create_commit"] = {"repo_id": repo_id} | keywords
        self.files = {operation.path_in_repo for operation in operations}
        for operation in operations:
            with operation.as_file() as content:
                (self.folder / operation.path_in_repo).write_bytes(content.read())
        return "what the hub says of the commit"

    def hf_hub_download(self, api, repo_id, filename, **keywords):
        self.calls["hf_hub_download"] = {"repo_id": repo_id, "filename": filename} | keywords
        if isinstance(self.card, Exception):
            raise self.card
        if self.card is None:
            raise EntryNotFoundError("no such file")
        return self.card


@pytest.fixture
def hub(tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    hub = Hub(tmp_path / "hub")
    for name in ("create_repo", "create_branch", "create_commit", "hf_hub_download"):
        replaced = getattr(hub, name)
        monkeypatch.setattr(HfApi, name, lambda *args, _replaced=replaced, **keywords: _replaced(*args, **keywords))
    return hub


def check_uploaded(hub, model):
    assert {"config.json", "model.reversible.safetensors", "README.md", "generation_config.json"} == hub.files
    config = json.loads((hub.folder / "config.json").read_text())
    assert config["model_type"] == MODEL_TYPE
    assert config["revformers"]["update_predictors"]
    uploaded, expected = (
        {name for name in names if "update_predictor" in name}
        for names in (load_file(hub.folder / "model.reversible.safetensors"), model.state_dict())
    )
    assert uploaded == expected != set()
    card = (hub.folder / "README.md").read_text()
    assert MARKER in card
    assert reversible_stack(model).dynamics.recurrence in card
    assert torch.equal(rf.from_pretrained(hub.folder)(TEXT).logits, model(TEXT).logits)


def test_push_to_hub_uploads_the_marked_model_and_its_card(hub, model):
    answer = model.push_to_hub(
        "someone/model",
        private=True,
        token="secret",
        commit_message="first",
        commit_description="words",
        revision="draft",
        tags=["small"],
    )
    assert answer == "what the hub says of the commit"
    check_uploaded(hub, model)
    assert "- small" in (hub.folder / "README.md").read_text()
    assert hub.calls["create_repo"] == {
        "repo_id": "someone/model",
        "private": True,
        "token": "secret",
        "exist_ok": True,
    }
    assert hub.calls["create_branch"]["branch"] == "draft"
    commit = hub.calls["create_commit"]
    expected = {"commit_message": "first", "commit_description": "words", "revision": "draft", "token": "secret"}
    assert expected.items() <= commit.items()


def test_saving_with_push_to_hub_uploads_what_was_saved(hub, model, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/diary.txt").write_text("private")
    model.save_pretrained(
        tmp_path / "saved",
        push_to_hub=True,
        repo_id="someone/other",
        token="secret",
        private=True,
        commit_message="second",
        create_pr=True,
    )
    check_uploaded(hub, model)
    assert torch.equal(rf.from_pretrained(tmp_path / "saved")(TEXT).logits, model(TEXT).logits)
    assert {"repo_id": "someone/other", "private": True, "token": "secret"}.items() <= hub.calls["create_repo"].items()
    assert {"commit_message": "second", "create_pr": True, "token": "secret"}.items() <= hub.calls[
        "create_commit"
    ].items()


def test_saving_with_push_to_hub_keeps_the_arguments_of_saving(hub, model, tmp_path):
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    # By position, push_to_hub is the third after the directory; the repository is called as the directory.
    model.save_pretrained(tmp_path / "zeros", True, state, True, max_shard_size="40KB")
    assert hub.calls["create_repo"]["repo_id"] == "zeros"
    assert "model.safetensors.index.reversible.json" in hub.files
    assert not any(value.any() for file in hub.folder.glob("*.safetensors") for value in load_file(file).values())


def test_without_push_to_hub_nothing_is_uploaded(hub, model, tmp_path):
    model.save_pretrained(tmp_path / "saved", push_to_hub=False)
    model.save_pretrained(tmp_path / "other", is_main_process=False, push_to_hub=True)
    assert not hub.calls


def test_an_argument_that_does_not_exist_is_refused(hub, model, tmp_path):
    with pytest.raises(TypeError, match="comit_message"):
        model.save_pretrained(tmp_path / "saved", push_to_hub=True, comit_message="third")
    with pytest.raises(TypeError, match="comit_message"):
        model.push_to_hub("someone/model", comit_message="third")
    assert not hub.calls


def test_a_card_on_the_hub_that_a_user_wrote_stays(hub, model, tmp_path):
    hub.card = tmp_path / "card.md"
    hub.card.write_text("# Mine")
    with pytest.warns(UserWarning, match=r"README\.md of someone/model was not written by revformers and is kept"):
        model.push_to_hub("someone/model")
    assert "README.md" not in hub.files
    hub.card.write_text(f"# Ours\n{MARKER}")
    model.push_to_hub("someone/model")
    assert "README.md" in hub.files


def test_where_the_hub_does_not_answer_no_card_is_replaced(hub, model):
    hub.card = LocalEntryNotFoundError("no connection")
    with pytest.raises(LocalEntryNotFoundError):
        model.push_to_hub("someone/model")
    assert "create_commit" not in hub.calls


def test_a_card_in_the_folder_that_a_user_wrote_goes_along(hub, model, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/README.md").write_text("# Mine")
    with pytest.warns(UserWarning, match="is kept; delete it"):
        model.save_pretrained(tmp_path / "saved", push_to_hub=True)
    assert (hub.folder / "README.md").read_text() == "# Mine"


def test_a_model_made_ordinary_again_is_uploaded_by_transformers():
    model = rf.make_reversible(llama(), rf.Midpoint())
    assert type(model).push_to_hub is not LlamaForCausalLM.push_to_hub
    assert type(rf.make_residual(model)) is LlamaForCausalLM


def trained_adapter(model, **options):
    """A LoRA adapter on every linear layer, the predictors' too, after a step that changes all of it."""
    torch.manual_seed(0)
    adapted = get_peft_model(
        model,
        LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM", **options),
    )
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    before = copy.deepcopy(peft.get_peft_model_state_dict(adapted))
    adapted(input_ids=TEXT, labels=TEXT).loss.backward()
    optimizer.step()
    after = peft.get_peft_model_state_dict(adapted)
    changed = [name for name, value in after.items() if not torch.equal(value, before[name])]
    assert any("update_predictor" in name for name in changed)
    return adapted.eval()


def test_a_merged_adapter_is_a_reversible_model_with_the_same_answers(model, tmp_path):
    untouched = model(TEXT).logits
    adapted = trained_adapter(model)
    with torch.no_grad():
        expected = adapted(TEXT).logits
    assert (expected - untouched).abs().max() > 0.01
    merged = adapted.merge_and_unload()
    assert reversible_stack(merged).dynamics.name == "blended_midpoint"
    assert len(update_predictors(merged)) == 6
    torch.testing.assert_close(merged(TEXT).logits, expected, atol=1e-3, rtol=1e-3)
    merged.save_pretrained(tmp_path / "merged")
    loaded = rf.from_pretrained(tmp_path / "merged")
    assert torch.equal(loaded(TEXT).logits, merged(TEXT).logits)
    assert rf.verify_gradients(loaded, {"input_ids": TEXT[:2]}).bit_exact
    tokens = [
        network.generate(**PROMPT, max_new_tokens=8, do_sample=False, pad_token_id=0) for network in (merged, loaded)
    ]
    assert torch.equal(*tokens)


def test_the_ordinary_network_comes_back_to_the_bit_after_saving_and_loading(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = rf.make_residual(rf.from_pretrained(tmp_path))
    assert torch.equal(loaded(TEXT).logits, smooth_llama()(TEXT).logits)


def test_an_adapter_names_the_saved_reversible_model_as_its_base(model, tmp_path):
    model.save_pretrained(tmp_path / "base")
    adapted = trained_adapter(rf.from_pretrained(tmp_path / "base"))
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert reversible_stack(loaded) is not None
    with torch.no_grad():
        assert torch.equal(loaded(TEXT).logits, adapted(TEXT).logits)
    tags = (tmp_path / "adapter/README.md").read_text().split("---")[1]
    assert f"base_model: {tmp_path / 'base'}" in tags


def test_an_adapter_of_a_base_made_reversible_in_memory_is_refused_on_the_ordinary_network(tmp_path):
    llama().save_pretrained(tmp_path / "ordinary")
    ordinary = type(llama()).from_pretrained(tmp_path / "ordinary")
    rf.make_reversible(ordinary, rf.BlendedMidpoint(0.25))
    trained = get_peft_model(
        ordinary, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    ).eval()
    trained.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"is an ordinary network; load both with revformers\.load_adapter"):
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    explicit = PeftModel.from_pretrained(
        rf.make_reversible(llama(), rf.BlendedMidpoint(0.25)).eval(), tmp_path / "adapter"
    )
    with torch.no_grad():
        for loaded in (explicit, rf.load_adapter(tmp_path / "adapter")):
            assert torch.equal(loaded.eval()(TEXT).logits, trained(TEXT).logits)
    assert rf.make_residual(trained.unload()).name_or_path == str(tmp_path / "ordinary")
