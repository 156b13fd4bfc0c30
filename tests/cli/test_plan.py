import json
from typing import get_args, get_type_hints

import pytest
from transformers import BertConfig, BitsAndBytesConfig, GPT2Config, GPTNeoConfig, LlamaConfig, T5Config

import revformers as rf
from revformers.cli.main import main
from revformers.cli.plan import PlanOptions, parse_memory
from revformers.models.attach import add_update_predictors
from revformers.models.update_predictor import PredictorForm
from revformers.planning.devices import DEVICES
from tests.test_reversible import llama


@pytest.fixture
def config(tmp_path):
    LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    ).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.thorough
def test_a_table_and_a_file(config, tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert main(["plan", config, "--memory", "8MB", "--sequence_length", "64", "--bits", "0", "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "rebuild" in shown
    plan = json.loads(out.read_text())
    assert [row["name"] for row in plan["setups"]] == ["store", "checkpoint", "serial offload", "offload", "rebuild"]
    assert plan["recommendation"] in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.thorough
def test_a_plan_for_scripts_is_nothing_but_json(config, capsys):
    words = ["plan", config, "--memory", "8MB", "--sequence_length", "16", "--bits", "1", "--train", "qlora"]
    assert main([*words, "--optimizer", "adamw8bit", "--json", "-"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["setups"][-1]["bits"] == 1
    assert plan["setups"][0]["memory"]["weights"] == plan["size"]["weights"]


@pytest.mark.thorough
def test_slow_memory_makes_what_moves_bytes_slower(config, tmp_path):
    times = []
    for ratio in ("1", "1000"):
        out = tmp_path / f"{ratio}.json"
        words = ["plan", config, "--memory", "8MB", "--sequence_length", "16", "--bits", "3", "--json", str(out)]
        assert main([*words, "--operations_per_byte", ratio]) == 0
        times.append(json.loads(out.read_text())["setups"][-1]["time"])
    assert times[0] < times[1]


@pytest.mark.thorough
def test_a_plot_has_a_curve_a_way(config, tmp_path):
    file = tmp_path / "plan.svg"
    words = ["plan", config, "--memory", "8MB", "--sequence_length", "64", "--bits", "0", "--plot", str(file)]
    assert main([*words, "--plot_axis", "batch"]) == 0
    drawn = file.read_text()
    assert drawn.count('id="rebuild, 0 bits"') == 1
    assert "sequences of 64 tokens" in drawn


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory", "much"], "such as 24GiB"),
        (["--memory", "1GiB", "--bits", "9"], "from 0 to 8"),
        (["--memory", "1GiB", "--host_memory", "much"], "--host_memory: A size is"),
        (["--memory", "1GiB", "--link", "fast"], "--link: A size is"),
        (["--memory", "1GiB", "--mlp_tile", "0"], "--mlp_tile takes a number of tokens, not 0"),
        (["--memory", "1GiB", "--sequence_length", "1"], "two tokens"),
        (["--memory", "1GiB", "--operations_per_byte", "0"], "a positive number"),
        (["--memory", "1GiB", "--plot", "plan.txt", "--sequence_length", "16"], "No plot can be written to plan.txt"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(config, options, message, capsys):
    assert main(["plan", config, *options]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert not shown.out


def test_a_missing_model_is_named(capsys):
    assert main(["plan", "./nowhere", "--memory", "1GiB"]) == 2
    assert "There is no directory './nowhere'" in capsys.readouterr().err


def test_a_gpu_has_a_data_sheet():
    assert get_args(get_type_hints(PlanOptions)["gpu"]) == tuple(DEVICES)


def test_sizes():
    assert [parse_memory(text) for text in ("24GiB", "80 GB", "1.5mib")] == [24 * 2**30, 80 * 10**9, 3 * 2**19]


@pytest.mark.thorough
def test_small_memories_are_in_mebibytes_and_no_number_is_cut(config, capsys):
    assert main(["plan", config, "--memory", "900MiB", "--sequence_length", "64", "--bits", "0"]) == 0
    shown = capsys.readouterr().out
    assert "of 900 MiB" in shown
    assert "MiB, one sequence of 64 tokens" in shown
    assert "…" not in shown


SMALL = {"hidden_size": 32, "vocab_size": 61}
GPT2 = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=61, n_positions=40, bos_token_id=0, eos_token_id=0)
NEO = GPTNeoConfig(
    **SMALL,
    num_layers=2,
    num_heads=2,
    attention_types=[[["global", "local"], 1]],
    max_position_embeddings=300,
    bos_token_id=0,
    eos_token_id=0,
)
BERT = {
    **SMALL,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 48,
}


def planned(config, directory, capsys, *words):
    config.save_pretrained(directory)
    assert main(["plan", str(directory), "--memory", "8MB", "--bits", "0", "--json", "-", *words]) == 0
    shown = capsys.readouterr()
    return json.loads(shown.out), shown.err


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("config", "longest"),
    [(GPT2, 40), (NEO, 300), (BertConfig(**BERT, is_decoder=True), 48)],
    ids=["gpt2", "neo", "bert"],
)
def test_learned_positions_end_the_longest_context(config, longest, tmp_path, capsys):
    plan, _ = planned(config, tmp_path, capsys, "--plot", str(tmp_path / "plan.svg"))
    assert plan["sequence_length"] == longest  # by default, as 2,048 tokens are too many
    assert {row["longest_context"] for row in plan["setups"] if row["name"] != "budget"} == {longest}
    assert main(["plan", str(tmp_path), "--memory", "8MB", "--sequence_length", str(longest + 1)]) == 2
    assert f"the model has positions for {longest} tokens only" in capsys.readouterr().err


@pytest.mark.thorough
def test_rotary_positions_do_not(config, capsys, tmp_path):
    plan, _ = planned(LlamaConfig.from_pretrained(config, max_position_embeddings=64), tmp_path, capsys)
    assert plan["sequence_length"] == 64
    assert min(row["longest_context"] for row in plan["setups"]) > 64
    for memory, remarked in (("8MB", True), ("300kB", False)):
        assert main(["plan", str(tmp_path), "--memory", memory, "--bits", "0"]) == 0
        shown = capsys.readouterr().out
        assert ("The model reads at most 64 tokens; longer contexts only fit the memory." in shown) == remarked


@pytest.mark.thorough
def test_a_reversible_model_is_planned_as_its_ordinary_one(tmp_path, capsys):
    model = llama()
    expected, _ = planned(model.config, tmp_path / "ordinary", capsys, "--sequence_length", "16")
    rf.make_reversible(model, rf.BlendedMidpoint(["1/2"] * 4)).save_pretrained(tmp_path / "reversible")
    plan, _ = planned(GPT2, tmp_path / "other", capsys, "--sequence_length", "16")
    words = ["--memory", "8MB", "--bits", "0", "--sequence_length", "16", "--json", "-"]
    assert main(["plan", str(tmp_path / "reversible"), *words]) == 0
    assert json.loads(capsys.readouterr().out) == expected != plan


@pytest.mark.thorough
def test_quantised_weights_are_planned_with_a_word(config, tmp_path, capsys):
    quantised = LlamaConfig.from_pretrained(config)
    quantised.quantization_config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    words = ["--sequence_length", "16"]
    assert (
        "the weights are in nf4, and are planned dequantised" in planned(quantised, tmp_path / "nf4", capsys, *words)[1]
    )
    assert not planned(quantised, tmp_path / "nf4", capsys, *words, "--train", "qlora")[1]
    assert not planned(LlamaConfig.from_pretrained(config), tmp_path / "plain", capsys, *words)[1]


@pytest.mark.parametrize(
    ("config", "message"),
    [(BertConfig(**BERT), "describes an encoder"), (T5Config(d_model=32), "does not describe a causal language model")],
)
def test_what_is_no_causal_language_model_is_refused(config, message, tmp_path, capsys):
    config.save_pretrained(tmp_path)
    assert main(["plan", str(tmp_path), "--memory", "4MB"]) == 2
    assert message in capsys.readouterr().err


def test_an_adapter_names_its_model(tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "the/base"}')
    assert main(["plan", str(tmp_path), "--memory", "4MB"]) == 2
    assert "name the model the/base that the adapter there belongs to" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_place_that_takes_nothing_is_refused_before_the_plan(option, config, tmp_path, capsys):
    (tmp_path / "file").touch()
    for place in ("/proc/nowhere/plan.svg", str(tmp_path / "file" / "plan.svg")):
        assert main(["plan", config, "--memory", "4MB", option, place]) == 2
        assert "Nothing can be written to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"head_dim": -3}, "head_dim is -3"),
        ({"num_hidden_layers": "8"}, "'num_hidden_layers'"),
        ({"hidden_size": 30, "num_attention_heads": 7}, "(30) is not a multiple of the number of attention heads (7)"),
        ({"hidden_act": "nope"}, "KeyError: 'nope'"),
        ({"pad_token_id": 900}, "Padding_idx"),
        ({"model_type": "gpt2", "n_layer": 0}, "layers of at least 1"),
        ({"num_key_value_heads": 3}, "2 heads of queries cannot share 3 heads of keys"),
    ],
    ids=str,
)
def test_a_configuration_of_no_model_is_one_sentence_with_its_name(fields, message, config, tmp_path, capsys):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(fields if "model_type" in fields else json.loads(file.read_text()) | fields))
    assert main(["plan", str(file), "--memory", "8MB", "--sequence_length", "16", "--bits", "0"]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("revformers plan:"))
    assert message in line
    assert str(file) in line


@pytest.mark.thorough
def test_predictors_are_those_of_the_model_unless_others_are_asked_for(tmp_path, capsys):
    model = llama()
    rf.make_reversible(model, rf.BlendedMidpoint(["1/4"] * 4))
    add_update_predictors(model, PredictorForm(("state", "update"), rank=2))
    model.save_pretrained(tmp_path)
    words = ["plan", str(tmp_path), "--memory", "4MB", "--bits", "2", "--sequence_length", "16", "--json", "-"]
    own, others = [], []
    for more, planned in (([], own), (["--predictors", "none"], others)):
        assert main([*words, *more]) == 0
        planned.append(json.loads(capsys.readouterr().out))
    assert own[0]["choices"]["predictors"] == {"features": ["state", "update"], "rank": 2}
    assert others[0]["choices"]["predictors"] is None
    weights = [plan[0]["setups"][4]["memory"]["weights"] for plan in (own, others)]
    width = model.config.hidden_size
    assert weights[0] - weights[1] == 2 * 4 * (3 * 2 * width + width)
    assert main([*words, "--granularity", "branch"]) == 2
    assert "--granularity branch of a model with update predictors needs --predictors none" in capsys.readouterr().err


@pytest.mark.thorough
def test_the_host_and_its_link_limit_offloading(config, capsys):
    words = ["plan", config, "--memory", "8MB", "--sequence_length", "64", "--bits", "0"]
    plans = []
    for more in (["--host_memory", "64kB"], ["--host_memory", "0", "--link", "1GB/s"]):
        assert main([*words, "--json", "-", *more]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    small, none = ({row["name"]: row for row in plan["setups"]} for plan in plans)
    # Two inputs of 64 tokens in bfloat16 take 8 KiB.
    assert small["offload"]["largest_batch"] == 4
    assert small["offload"]["longest_context"] == 256
    assert small["offload"]["limited_by_host"]
    assert not small["rebuild"]["limited_by_host"]
    assert none["offload"]["largest_batch"] == none["offload"]["longest_context"] == 0
    assert none["offload"]["time"] > small["offload"]["time"]
    assert main([*words, "--host_memory", "64kB"]) == 0
    assert "Limited by the memory of the host: serial offload, offload." in " ".join(capsys.readouterr().out.split())


@pytest.mark.thorough
def test_tiles_and_branches_are_planned_on_request(config, capsys):
    words = ["plan", config, "--memory", "8MB", "--sequence_length", "64", "--bits", "0", "--json", "-"]
    totals = []
    for more in ([], ["--mlp_tile", "16"], ["--granularity", "branch"]):
        assert main([*words, *more]) == 0
        plan = json.loads(capsys.readouterr().out)
        totals.append({row["name"]: sum(row["memory"].values()) for row in plan["setups"]})
    assert totals[1]["checkpoint"] < totals[0]["checkpoint"]
    assert totals[2]["checkpoint"] == totals[0]["checkpoint"]
    assert totals[2]["rebuild"] < totals[0]["rebuild"]
