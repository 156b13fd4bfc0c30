import dataclasses
import json

import pytest
import torch

from lab.fuzz import run as run_module
from lab.fuzz.__main__ import Arguments, main
from lab.fuzz.case import FAMILIES, Case, draw_case
from lab.fuzz.events import HARMFUL, HARMLESS
from lab.fuzz.models import draw_batches, ordinary_model, reversible_model
from lab.fuzz.orders import ORDERS
from lab.fuzz.reference import Recurrence
from lab.fuzz.run import run_case
from revformers.dynamics import BlendedMidpoint, from_dict
from revformers.engine.proof.evidence import Evidence, LaterEvidence
from revformers.engine.proof.verdicts import Verdicts
from revformers.errors import RebuildMismatchError
from revformers.models.parts import reversible_stack

CASES, GROUP = 200, 10

PLAIN = Case(
    seed=0,
    family="LlamaForCausalLM",
    layers=4,
    sharpness=0.2,
    perturbation=0.0,
    dtype="float32",
    autocast=False,
    dropout=0.0,
    attention="sdpa",
    adapters="none",
    frozen="nothing",
    dynamics=BlendedMidpoint("1/4").to_dict(),
    predictors=(),
    policy="rebuild",
    batch=(2, 16),
    padding="none",
    tile=0,
    chunk=0,
    compiled=False,
    order="once",
    between="nothing",
)


@pytest.mark.thorough
@pytest.mark.parametrize("first", range(0, CASES, GROUP))
def test_random_set_ups_are_exact_or_refused(first):
    outcomes = {seed: run_case(draw_case(seed)) for seed in range(first, first + GROUP)}
    assert not {seed: outcome for seed, outcome in outcomes.items() if outcome.kind == "FAILED"}
    assert sum(outcome.kind == "exact" for outcome in outcomes.values()) >= 2
    assert sum(outcome.kind == "impossible" for outcome in outcomes.values()) <= 6


@pytest.mark.gpu
@pytest.mark.parametrize("first", range(0, 60, GROUP))
def test_random_set_ups_on_a_gpu_are_exact_or_refused(first):
    outcomes = {seed: run_case(draw_case(seed), "cuda") for seed in range(first, first + GROUP)}
    assert not {seed: outcome for seed, outcome in outcomes.items() if outcome.kind == "FAILED"}
    assert any(outcome.kind == "exact" for outcome in outcomes.values())


def test_models_and_batches_lie_on_the_device():
    """Adapters and predictors among them; on the meta device, which computes nothing."""
    device = torch.device("meta")
    case = dataclasses.replace(PLAIN, adapters="trained", padding="4-d mask", predictors=("state", "update"))
    for model in (reversible_model(case, "rebuild", device), ordinary_model(case, device)):
        assert {tensor.device for tensor in (*model.parameters(), *model.buffers())} == {device}
    assert {tensor.device for batch in draw_batches(case, device) for tensor in batch.values()} == {device}


def test_a_device_that_pytorch_cannot_use_is_refused():
    with pytest.raises(SystemExit, match="PyTorch cannot use the device 'cuda:99'"):
        main(Arguments(device="cuda:99"))


def test_a_seed_is_one_set_up_and_seeds_draw_everything():
    assert draw_case(7) == draw_case(7)
    cases = [draw_case(seed) for seed in range(1500)]
    assert {case.family for case in cases} == set(FAMILIES)
    assert {case.between for case in cases} == HARMLESS.keys() | HARMFUL.keys()
    assert {case.order for case in cases} == set(ORDERS)
    blends = [abs(from_dict(case.dynamics).coefficients(0).previous) for case in cases]
    assert min(blends) == 0
    assert any(0 < blend < 1 for blend in blends)
    assert any(blend > 1 for blend in blends)
    for field in dataclasses.fields(Case):
        assert len({str(getattr(case, field.name)) for case in cases}) > 1, field.name


@pytest.mark.parametrize("policy", ["rebuild", "checkpoint", "budget 1.2 rebuild"])
def test_without_its_evidence_the_engine_is_found_out(monkeypatch, policy):
    # Seed 1 draws a weight in the middle of a layer; the last one of a layer no policy needs to compute again.
    case = dataclasses.replace(PLAIN, seed=1, policy=policy, between="write to a weight's data")
    assert run_case(case).kind == "refused"
    monkeypatch.setattr(Verdicts, "add", lambda *_: None)
    monkeypatch.setattr(LaterEvidence, "add", lambda *_: None)
    monkeypatch.setattr(LaterEvidence, "finish", lambda *_: None)
    monkeypatch.setattr(Evidence, "leaves", lambda _: ())
    assert "differ silently" in run_case(case).note


def test_a_refusal_without_a_cause_is_a_failure(monkeypatch):
    monkeypatch.setattr(Verdicts, "add", lambda self, equal, error: 1 / 0)
    assert "an error where nothing had changed: ZeroDivisionError" in run_case(PLAIN).note
    changed = dataclasses.replace(PLAIN, between="change the threads")
    assert "an error that is no answer: ZeroDivisionError" in run_case(changed).note
    monkeypatch.undo()
    false = torch.zeros((), dtype=torch.bool)
    add = Verdicts.add
    monkeypatch.setattr(Verdicts, "add", lambda self, equal, error: add(self, false, error))
    assert "an error where nothing had changed: RebuildMismatchError" in run_case(PLAIN).note


def test_an_error_has_to_name_the_layer_that_was_changed():
    outcomes = {}
    for between in ("optimizer step", "change the dtype"):
        case = dataclasses.replace(PLAIN, between=between)
        for layer in range(5):
            error = RebuildMismatchError(f"Layer {layer} differs")
            outcomes[between, layer] = run_module._judge_errors(
                case, run_module._Result({}, True, 2), run_module._Result(error, True, 2), torch.device("cpu")
            ).kind
    assert [layer for layer in range(5) if outcomes["optimizer step", layer] == "refused"] == [2]
    assert [layer for layer in range(5) if outcomes["change the dtype", layer] == "refused"] == [0, 1, 2, 3]


def test_a_gradient_that_both_runs_lack_is_missed(monkeypatch):
    plain = dataclasses.replace(PLAIN, dtype="float64", between="nothing", predictors=("state", "update"))
    assert run_case(plain).kind == "exact"
    run = run_module._run
    for left_out in ("layers.1.", "update_predictor"):

        def without(case, model, left_out=left_out):
            result = run(case, model)
            found = {name: gradient for name, gradient in result.found.items() if left_out not in name}
            assert len(found) < len(result.found)
            return dataclasses.replace(result, found=found)

        monkeypatch.setattr(run_module, "_run", without)
        assert "away from that of the recurrence" in run_case(plain).note


def test_an_event_that_changes_nothing_excuses_no_error(monkeypatch):
    # Without dropout a layer gives the same in eval(), without adapters there are none to merge, and the mask has two
    # dimensions; so these are no causes.
    false = torch.zeros((), dtype=torch.bool)
    add = Verdicts.add
    for between in ("eval", "merge adapters", "refill the mask"):
        case = dataclasses.replace(PLAIN, between=between, padding="left")
        assert run_case(case).kind == "exact"
        with monkeypatch.context() as patch:
            patch.setattr(Verdicts, "add", lambda self, equal, error: add(self, false, error))
            assert "an error where nothing had changed" in run_case(case).note


def test_an_error_of_every_policy_is_impossible_only_where_the_ordinary_model_has_it(monkeypatch):
    # PyTorch's fused attention has no second derivative, with this library or without it.
    second = dataclasses.replace(PLAIN, order="second derivative")
    assert run_case(second).kind == "impossible"
    assert run_case(dataclasses.replace(second, attention="eager")).kind == "exact"

    def crash(case, model):
        error = RuntimeError("crash") if reversible_stack(model) else None
        return run_module._Result(error or {}, False)

    monkeypatch.setattr(run_module, "_run", crash)
    assert run_case(PLAIN).note == "an error where nothing had changed: RuntimeError: crash"


@pytest.mark.parametrize("field", ["dtype", "attention", "adapters", "frozen", "padding", "order", "between", "states"])
def test_a_case_has_no_names_that_nothing_happens_for(field):
    with pytest.raises(ValueError, match=f"{field} is one of .*, not 'whatever'"):
        dataclasses.replace(PLAIN, **{field: "whatever"})


def test_the_recurrence_by_hand_tells_other_coefficients_from_these(monkeypatch):
    case = dataclasses.replace(PLAIN, dtype="float64", predictors=("state", "update"))
    assert run_case(case).distance < 1e-5
    make = Recurrence.__init__
    other = BlendedMidpoint("1/3")
    monkeypatch.setattr(Recurrence, "__init__", lambda self, dynamics, predictors: make(self, other, predictors))
    assert "away from that of the recurrence" in run_case(case).note


@pytest.mark.thorough
def test_the_command_counts_and_prints_what_fails(monkeypatch, tmp_path, capsys):
    file = tmp_path / "result.json"
    assert main(Arguments(cases=2, seed=3, out=file)) == 0
    assert capsys.readouterr().out.strip().startswith("2 set-ups from seed 3 in ")
    result = json.loads(file.read_text())
    assert sum(result["set_ups"].values()) == 2
    assert result["failures"] == []
    monkeypatch.setattr(Verdicts, "add", lambda self, equal, error: 1 / 0)
    assert main(Arguments(cases=12, seed=0, out=file)) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED"))
    assert "ZeroDivisionError" in line
    assert "seed=" in line
    assert json.loads(file.read_text())["failures"][0]["case"]["family"] in FAMILIES
