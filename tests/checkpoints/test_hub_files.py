import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

import revformers as rf
from revformers.checkpoints.hub_files import UNREACHABLE, look_up
from revformers.checkpoints.load import load_causal_lm, load_config, load_tokenizer


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        *((kind("no route"), "it cannot be reached") for kind in UNREACHABLE),
        (TimeoutError("slow"), "it cannot be reached"),
        (OfflineModeIsEnabled("offline"), "offline mode is on"),
    ],
)
def test_a_model_that_the_hub_cannot_be_asked_for_is_refused_at_once(monkeypatch, tmp_path, error, reason):
    asked = []

    def model_info(self, name, timeout):
        asked.append((name, timeout))
        raise error

    monkeypatch.setattr(HfApi, "model_info", model_info)
    monkeypatch.setattr(constants, "is_offline_mode", lambda: isinstance(error, OfflineModeIsEnabled))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--owner--name"
    for failed in ("refs", "blobs", "snapshots/main", ".no_exist/main"):  # what a failed download leaves
        (cached / failed).mkdir(parents=True)
    message = rf"There is no directory 'owner/name', and the Hugging Face hub cannot be asked .*: {reason}\."
    for load in (rf.from_pretrained, load_causal_lm, load_tokenizer, load_config):
        with pytest.raises(FileNotFoundError, match=message):
            load("owner/name")
    assert asked == [("owner/name", 10)] * 4
    (cached / "snapshots" / "main" / "config.json").write_text("{}")
    look_up("owner/name", {})
    assert len(asked) == 4


def test_a_fault_of_ours_is_not_taken_for_one_of_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr(HfApi, "model_info", lambda *arguments, **options: 1 / 0)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ZeroDivisionError):
        look_up("owner/name", {})


def test_the_errors_of_the_hub_are_those_of_its_http_library():
    library, system = UNREACHABLE
    assert system is OSError
    assert library.__module__.partition(".")[0] not in ("builtins", "huggingface_hub")
    assert not issubclass(HFValidationError, UNREACHABLE)
    assert issubclass(HfHubHTTPError, UNREACHABLE)
