"""An interrupted conversion goes on where it was, and ends as one that went through."""

import pytest
import torch

import revformers as rf
from revformers.conversion import unfinished as unfinished_module
from revformers.conversion.convert import Converter, Method
from revformers.conversion.trajectories import Trajectories
from revformers.conversion.unfinished import Unfinished, identity_of
from tests.conversion.test_convert import TEXT, smooth_llama

LAYERS = 6


@pytest.fixture(autouse=True)
def saved_after_every_layer(monkeypatch):
    monkeypatch.setattr(unfinished_module, "SECONDS_BETWEEN_SAVES", 0.0)


@pytest.fixture
def evaluated(monkeypatch):
    """Each walk (along the original, or along both networks) and layer that is evaluated."""
    noted, evaluate = set(), Trajectories.evaluate

    def noting(self, layer, index, *, original_only=False):
        noted.add((original_only, layer))
        return evaluate(self, layer, index, original_only=original_only)

    monkeypatch.setattr(Trajectories, "evaluate", noting)
    return noted


def stop_after(number):
    def progress(done, total):
        if done == number:
            raise KeyboardInterrupt

    return progress


def interrupt(folder, number, **options):
    model = smooth_llama()
    with pytest.raises(KeyboardInterrupt):
        rf.convert(model, 1, TEXT, progress=stop_after(number), unfinished=folder, **options)
    return model


@pytest.mark.thorough
@pytest.mark.parametrize("number", [1, 4, LAYERS, LAYERS + 1, 2 * LAYERS - 1, 2 * LAYERS])
@pytest.mark.parametrize("predictor", ["state", "previous_mlp"])
def test_it_ends_with_the_same_model(tmp_path, number, predictor, evaluated):
    interrupt(tmp_path / "unfinished", number, predictor=predictor)
    assert (tmp_path / "unfinished").is_dir()
    evaluated.clear()
    model, through = smooth_llama(), smooth_llama()
    resumed = rf.convert(model, 1, TEXT, unfinished=tmp_path / "unfinished", predictor=predictor)
    assert len(evaluated) == 2 * LAYERS - number  # the layers that were done are not evaluated again
    assert resumed == rf.convert(through, 1, TEXT, predictor=predictor)
    ours, theirs = model.state_dict(), through.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not (tmp_path / "unfinished").exists()


def test_without_a_directory_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        rf.convert(smooth_llama(), 1, TEXT, progress=stop_after(3))
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_another_budget_goes_on_from_what_no_budget_changes(tmp_path, monkeypatch):
    interrupt(tmp_path / "unfinished", LAYERS + 2)
    measured = []
    monkeypatch.setattr("revformers.conversion.convert.measure_layer_costs", lambda *_: measured.append(1) or 1 / 0)
    model = smooth_llama()
    assert rf.convert(model, 3, TEXT, unfinished=tmp_path / "unfinished").bits == pytest.approx(3, abs=0.2)
    assert not measured


@pytest.mark.thorough
def test_several_budgets_go_on_from_the_last_one(tmp_path, evaluated):
    def converter():
        return Converter(smooth_llama(), Method(), TEXT, None, unfinished=tmp_path / "unfinished")

    expected = [converter().convert(bits) for bits in (2, 3)]
    evaluated.clear()
    again = converter()
    assert [again.convert(bits) for bits in (2, 3)] == expected
    assert not evaluated
    again.finish()
    assert not (tmp_path / "unfinished").exists()


def configured(**changes):
    model = smooth_llama()
    for name, value in changes.items():
        setattr(model.config, name, value)
    return model


@pytest.mark.thorough
def test_another_conversion_is_refused(tmp_path):
    interrupt(tmp_path / "unfinished", 2)
    other = smooth_llama()
    with torch.no_grad():
        other.model.layers[3].mlp.down_proj.weight[0, 0] += 1e-3
    for model, text, options in (
        (other, TEXT, {}),
        (smooth_llama(), TEXT.flip(0), {}),
        (smooth_llama(), TEXT, {"predictor": "update"}),
        (smooth_llama(), TEXT, {"allocation": "uniform"}),
        (configured(rms_norm_eps=1e-3), TEXT, {}),
    ):
        with pytest.raises(ValueError, match="holds an unfinished conversion of another model, by another method or"):
            rf.convert(model, 1, text, unfinished=tmp_path / "unfinished", **options)
    assert rf.convert(smooth_llama(), 1, TEXT, unfinished=tmp_path / "unfinished").bits == pytest.approx(1, abs=0.2)


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("ten years of work")
    for path in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(ValueError, match="holds something other than an unfinished conversion; remove it"):
            rf.convert(smooth_llama(), 1, TEXT, unfinished=path)
    assert (tmp_path / "thesis.txt").is_file()


@pytest.mark.thorough
def test_what_others_put_into_the_directory_stays(tmp_path):
    interrupt(tmp_path / "unfinished", 2)
    (tmp_path / "unfinished/thesis.txt").write_text("ten years of work")
    rf.convert(smooth_llama(), 1, TEXT, unfinished=tmp_path / "unfinished")
    assert [path.name for path in (tmp_path / "unfinished").iterdir()] == ["thesis.txt"]


@pytest.mark.thorough
def test_a_stage_that_was_cut_off_in_its_first_writing_goes_too(tmp_path):
    interrupt(tmp_path / "unfinished", 2)
    (tmp_path / "unfinished/blends-of-another-budget").mkdir()
    (tmp_path / "unfinished/blends-of-another-budget/layer-0.safetensors").touch()
    rf.convert(smooth_llama(), 1, TEXT, unfinished=tmp_path / "unfinished")
    assert not (tmp_path / "unfinished").exists()


@pytest.mark.thorough
def test_a_link_to_a_directory_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    interrupt(tmp_path / "link", 2)
    assert any((tmp_path / "disk").iterdir())
    assert rf.convert(smooth_llama(), 1, TEXT, unfinished=tmp_path / "link").loss


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["last-updates/states.safetensors", "last-updates/layer-1.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_a_damaged_directory_is_named_with_what_to_do(tmp_path, name, damage):
    interrupt(tmp_path / "unfinished", 4)
    file = tmp_path / "unfinished" / name
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "gone": b""}[damage])
    if damage == "gone":
        file.unlink()
    if damage == "gone" and "states" in name:  # without it nothing counts as done
        assert rf.convert(smooth_llama(), 1, TEXT, unfinished=tmp_path / "unfinished").loss
        return
    with pytest.raises(ValueError, match=r"is damaged or missing; remove .*unfinished, and convert from the beginning"):
        rf.convert(smooth_llama(), 1, TEXT, unfinished=tmp_path / "unfinished")


def test_results_without_the_states_behind_them_do_not_count(tmp_path):
    """A process that is killed between the two begins at the layer before."""
    stage = Unfinished(tmp_path / "unfinished", lambda: "one").stage("walk")
    result = {"solution": torch.ones(2)}
    stage.save(0, result, lambda: {"state": torch.zeros(2)}, last=False)
    with pytest.raises(ZeroDivisionError):
        stage.save(1, result, lambda: 1 / 0, last=False)
    again = Unfinished(tmp_path / "unfinished", lambda: "one").stage("walk")
    assert again.layers_done == 1
    assert torch.equal(again.states()["state"], torch.zeros(2))
    assert again.result(1) is None


def test_the_identity_sees_every_bit():
    model, batch = smooth_llama().to(torch.bfloat16), {"input_ids": torch.arange(4).view(1, 4)}
    one = identity_of(model, [batch], "method")
    assert one == identity_of(model, [batch], "method")
    others = [identity_of(model, [batch], "another")]
    others.append(identity_of(model, [{"input_ids": batch["input_ids"] + 1}], "method"))
    others.append(identity_of(configured(rope_theta=5e5).to(torch.bfloat16), [batch], "method"))
    with torch.autocast("cpu", torch.bfloat16):
        others.append(identity_of(model, [batch], "method"))
    with torch.no_grad():
        model.lm_head.weight.view(torch.int16)[0, 0] ^= 1
    others.append(identity_of(model, [batch], "method"))
    assert one not in others
    assert len(set(others)) == len(others)
