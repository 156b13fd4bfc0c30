import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from revformers import Hamiltonian, Residual, make_reversible
from revformers.cli.exit_codes import CHECK_FAILED
from revformers.cli.main import main
from tests.training.tiny import write_recipe


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=40,
    )
    return LlamaForCausalLM(config)


@pytest.fixture
def ordinary(tmp_path):
    llama().save_pretrained(tmp_path / "ordinary")
    return str(tmp_path / "ordinary")


@pytest.fixture
def reversible(tmp_path):
    make_reversible(llama(), Hamiltonian()).save_pretrained(tmp_path / "reversible")
    return str(tmp_path / "reversible")


def test_a_recipe(tmp_path, capsys):
    assert main(["verify", str(write_recipe(tmp_path))]) == 0
    assert "equal stored gradients to the bit" in capsys.readouterr().out


def test_a_saved_reversible_model(reversible, capsys):
    assert main(["verify", reversible]) == 0
    assert Hamiltonian().recurrence in capsys.readouterr().out


def test_states_may_be_given(reversible, capsys):
    assert main(["verify", reversible, "--states", "int32:20"]) == 0
    assert "32-bit integers up to 2,032 with 20 binary digits" in capsys.readouterr().out
    assert main(["verify", reversible, "--states", "int16"]) == 2
    assert "no states 'int16'" in capsys.readouterr().err


def test_an_ordinary_model_is_given_dynamics(ordinary, capsys):
    assert main(["verify", ordinary, "--dynamics", "leapfrog", "--dtype", "bfloat16", "--length", "16"]) == 0
    shown = capsys.readouterr().out
    assert "bfloat16" in shown
    assert "states              32-bit integers up to 32,512" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "is an ordinary model; name a recurrence for it with --dynamics"),
        (["--dynamics", "euler"], "no dynamics called 'euler'"),
        (["--dynamics", "residual"], "no inverse"),
        (["--dynamics", "midpoint", "--length", "41"], "reads at most 40 tokens"),
        (["--dynamics", "midpoint", "--length", "1"], "at least 2 tokens"),
        (["--dynamics", "midpoint", "--device", "nonsense"], "cannot use the device 'nonsense'"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(ordinary, options, message, capsys):
    assert main(["verify", ordinary, *options]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_dynamics_without_an_inverse_are_one_sentence(tmp_path, capsys):
    make_reversible(llama(), Residual(), "store").save_pretrained(tmp_path / "residual")
    recipe = write_recipe(tmp_path)
    values = yaml.safe_load(recipe.read_text())
    values["dynamics"] = {"name": "residual", "activations": "store"}
    recipe.write_text(yaml.safe_dump(values))
    capsys.readouterr()
    for name in (tmp_path / "residual", recipe):
        assert main(["verify", str(name)]) == 2
        shown = capsys.readouterr().err
        assert "has the dynamics residual, which have no inverse" in shown
        assert shown.count("\n") == 1


def test_a_loss_that_is_not_finite_is_one_sentence(tmp_path, capsys):
    model = llama()
    torch.nn.init.constant_(model.lm_head.weight, torch.nan)
    model.save_pretrained(tmp_path / "nan")
    assert main(["verify", str(tmp_path / "nan"), "--dynamics", "midpoint"]) == 2
    assert "The loss is nan with stored activations, so there are no gradients" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["./nowhere", "nowhere.yaml"])
def test_a_missing_model_is_named(name, capsys):
    assert main(["verify", name]) == 2
    assert "There is no" in capsys.readouterr().err


def test_a_directory_without_a_model_is_named(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 2
    assert "has no config.json, so it holds no whole model" in capsys.readouterr().err


def test_gradients_that_differ_have_exit_code_1(reversible, monkeypatch, capsys):
    import dataclasses

    import revformers

    exact = revformers.verify_gradients
    monkeypatch.setattr(
        revformers,
        "verify_gradients",
        lambda model, batch: dataclasses.replace(exact(model, batch), bit_exact=False),
    )
    assert main(["verify", reversible]) == CHECK_FAILED
    assert "DIFFER" in capsys.readouterr().out
