import json
import shutil

import pytest
import torch
from peft import (
    PeftConfig,
    PeftModel,
)

import revformers as rf
from revformers.checkpoints.adapter_base import (
    DESCRIPTION,
    MARK,
    PREDICTORS,
    _digests,
    ordinary_type,
    read_description,
    unseal_adapter,
)
from revformers.errors import ModelFilesError
from tests.checkpoints.adapters import BASES, base, wrong_base
from tests.tiny_trainers import (
    logits,
    saved,
    with_adapter,
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_in_another_dtype_is_the_same_base(dtype, folder, adapters, tmp_path):
    narrow = rf.from_pretrained(saved(folder / "converted", converted=True), dtype=dtype)
    PeftModel.from_pretrained(narrow, adapters["converted and saved"][0])
    with_adapter(rf.from_pretrained(folder / "converted", dtype=dtype)).save_pretrained(tmp_path)
    assert rf.load_adapter(tmp_path).get_base_model().dtype == dtype
    PeftModel.from_pretrained(rf.from_pretrained(folder / "converted", dtype=torch.float32), tmp_path)


def test_the_predictors_lie_beside_the_adapter_only_where_the_base_does_not_hold_them(adapters):
    for kind in BASES:
        assert (adapters[kind][0] / PREDICTORS).is_file() == (kind == "converted")


def test_an_adapter_that_lost_its_description_is_refused(folder, adapters, tmp_path):
    shutil.copytree(adapters["memory"][0], tmp_path / "adapter")
    (tmp_path / "adapter" / DESCRIPTION).unlink()
    for model in (wrong_base("ordinary", folder), base("memory", folder)):
        with pytest.raises(ModelFilesError, match=rf"trained on a reversible model and lacks {DESCRIPTION}"):
            PeftModel.from_pretrained(model, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("kind", "wrong", "named"),
    [
        ("memory", "other dynamics", "name"),
        ("memory", "other predictors", "update predictors"),
        ("converted", "other predictors", "the weights of the update predictors|blend|step_size"),
    ],
)
def test_the_sentence_says_what_tells_the_networks_apart(kind, wrong, named, folder, adapters):
    with pytest.raises(ValueError, match=rf"they differ in .*({named}).*; load both"):
        PeftModel.from_pretrained(wrong_base(wrong, folder), adapters[kind][0])


def test_files_that_contradict_each_other_are_refused(folder, tmp_path):
    """As where PEFT alone has saved over the adapter, or somebody has written its configuration anew."""
    adapted = with_adapter(base("memory", folder))
    adapted.save_pretrained(tmp_path)
    config = PeftConfig.from_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    for load in (
        rf.load_adapter,
        lambda place: PeftModel.from_pretrained(base("memory", folder), place),
        lambda place: PeftModel.from_pretrained(wrong_base("ordinary", folder), place),
    ):
        with pytest.raises(ModelFilesError, match=r"contradict .*delete reversible\.json; otherwise set peft_type to"):
            load(tmp_path)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(values | {"peft_type": values["peft_type"] + MARK}))
    assert torch.equal(logits(rf.load_adapter(tmp_path)), logits(adapted))


@pytest.mark.parametrize("lost", ["base", "predictors_sha256", "update_predictors", "dynamics"])
def test_a_damaged_description_is_named(lost, folder, adapters, tmp_path):
    shutil.copytree(adapters["memory"][0], tmp_path / "adapter")
    file = tmp_path / "adapter" / DESCRIPTION
    values = json.loads(file.read_text())
    del values[lost]
    file.write_text(json.dumps(values))
    for load in (rf.load_adapter, lambda place: PeftModel.from_pretrained(base("memory", folder), place)):
        with pytest.raises(ModelFilesError, match=rf"{DESCRIPTION}.*{lost}.*save .* again"):
            load(file.parent)


def test_an_adapter_that_is_merged_into_the_predictors_is_not_saved(folder, tmp_path):
    adapted = with_adapter(base("converted", folder))
    adapted.merge_adapter()
    with pytest.raises(ValueError, match=r"merged into the update predictors.* unmerge_adapter\(\)"):
        adapted.save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())
    adapted.unmerge_adapter()
    adapted.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(rf.load_adapter(tmp_path)), logits(adapted))


def test_digests_tell_other_weights_and_other_names_apart_and_are_blind_to_the_dtype():
    weights = {"0.bias": torch.tensor([1.0, 2.0, 1 / 3]), "1.bias": torch.tensor([4.0])}
    own = set(_digests(weights))
    for dtype in (torch.bfloat16, torch.float16):
        assert own & set(_digests({name: value.to(dtype) for name, value in weights.items()}))
    swapped = {"0.bias": weights["0.bias"], "2.bias": weights["1.bias"]}
    for other in (swapped, weights | {"1.bias": torch.tensor([4.1])}, {}):
        assert not own & set(_digests(other))


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_a_file_that_holds_no_description_is_damaged(text, tmp_path):
    (tmp_path / "reversible.json").write_text(text)
    with pytest.raises(ModelFilesError, match=r"reversible\.json is damaged"):
        read_description(tmp_path / "reversible.json")


def test_the_description_of_an_older_adapter_is_removed_with_its_predictors(tmp_path):
    unseal_adapter(tmp_path)
    for name in (DESCRIPTION, PREDICTORS, "adapter_model.safetensors"):
        (tmp_path / name).touch()
    unseal_adapter(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["adapter_model.safetensors"]
    (tmp_path / PREDICTORS).touch()
    unseal_adapter(tmp_path)
    assert (tmp_path / PREDICTORS).exists(), "of a model, not of an adapter"


def test_the_type_of_an_adapter_is_read_with_and_without_its_mark():
    assert ordinary_type(f"LORA{MARK}") == ordinary_type("LORA") == "LORA"
