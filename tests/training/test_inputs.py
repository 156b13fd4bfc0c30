import json
import shutil

import pytest
from huggingface_hub import constants

from revformers.data.cache import file_digest
from revformers.files import write_text
from revformers.training.inputs import content_of_configuration, content_of_tokenizer, content_of_weights
from tests.training.tiny_finetune import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("inputs")
    write_model(directory)
    return directory / "model"


CONTENTS = (content_of_tokenizer, content_of_configuration, content_of_weights)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("tokenizer.json", [content_of_tokenizer]),
        ("tokenizer_config.json", [content_of_tokenizer]),
        ("chat_template.jinja", [content_of_tokenizer]),
        ("config.json", [content_of_configuration]),
        ("model.safetensors", [content_of_weights]),
        ("README.md", []),
    ],
)
def test_a_change_of_a_file_changes_the_content_of_what_is_loaded_from_it(model, tmp_path, changed, expected):
    copy = shutil.copytree(model, tmp_path / "copy")
    before = [content(str(model)) for content in CONTENTS]
    assert [content(str(copy)) for content in CONTENTS] == before
    file = copy / changed
    file.write_bytes((file.read_bytes() if file.exists() else b"") + b" ")
    after = [content(str(copy)) for content in CONTENTS]
    assert [content for content, one, two in zip(CONTENTS, before, after, strict=True) if one != two] == expected


def test_shards_and_their_order_matter_not_the_name_of_the_directory(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    shutil.move(copy / "model.safetensors", copy / "a.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"one": "a.safetensors"}}))
    assert content_of_weights(str(copy)) != content_of_weights(str(model))
    before = content_of_weights(str(copy))
    (copy / "a.safetensors").write_bytes(b"other")
    assert content_of_weights(str(copy)) != before


def test_a_gguf_file_is_one_content(tmp_path, monkeypatch):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"weights")
    monkeypatch.setattr("revformers.training.inputs.find_gguf", lambda name: file)
    assert {content(str(file)) for content in (content_of_tokenizer, content_of_weights)} == {file_digest(file)}


def test_a_model_of_the_hub_is_read_from_its_cache(model, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--someone--tiny"
    for revision, commit in {"main": "a" * 40, "other": "b" * 40}.items():
        shutil.copytree(model, cached / "snapshots" / commit)
        write_text(cached / "refs" / revision, commit)
    (cached / "snapshots" / ("b" * 40) / "model.safetensors").write_bytes(b"other")
    for content in CONTENTS:
        assert content("someone/tiny") == content(str(model))
        assert (content("someone/tiny", "other") == content(str(model))) == (content != content_of_weights)
