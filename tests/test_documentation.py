"""The README and the Makefile are tested: their commands run, in order, on a smaller network."""

import json
import re
import shlex
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
import transformers
import yaml

from revformers.cli.main import main
from revformers.data.tokenizer import train_tokenizer
from tests.models.test_reversible import llama

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALLER = {
    "compare": "--dynamics_steps 2 --arm_steps 2 --depths 1 2",
    "convert": "--length 32 --sequences 4 --held_out 2",
    "finetune": "--data.source text.txt --data.subset none --data.validation_split none --data.block_length 32 "
    "--data.validation_blocks 2 --conversion.sequences 4 --training.max_steps 2 "
    "--training.eval_steps 2 --training.arguments.use_cpu true",
    "finetune recipes/lora-instructions.yaml": "--conversion.sequences 2 --data.block_length 64 "
    "--data.validation_blocks 2 --training.max_steps 2 --training.eval_steps 2 --training.arguments.use_cpu true "
    "--model.dtype float32",
    "evaluate": "--limit 2",
}
"""What is added to a command so that its test takes seconds."""


def readme_commands():
    return [line.strip() for line in README.splitlines() if line.startswith("    revformers ")]


def make_run_commands():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    variables = dict(re.findall(r"^(\w+) :?= (.*)$", makefile, re.MULTILINE))
    recipe = makefile.partition("\nrun:")[2].partition("\n\n")[0]
    for name in ("QUICKSTART", "RUN"):
        recipe = recipe.replace(f"$({name})", variables[name])
    return [line.strip().removeprefix("$(BIN)/") for line in recipe.splitlines()[1:]]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A folder with the quickstart's recipe, its network and its text made small, and a cache of its own."""
    recipe = yaml.safe_load((ROOT / "recipes/quickstart.yaml").read_text(encoding="utf-8"))
    recipe["model"]["config"] |= {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    recipe["model"]["config"] |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    recipe["data"] |= {"source": "text.txt", "vocabulary_size": 300, "block_length": 32, "validation_blocks": 8}
    recipe["training"] |= {"max_steps": 2, "eval_steps": 2, "save_steps": 2, "per_device_train_batch_size": 2}
    recipe["sample"]["max_new_tokens"] = 4
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/quickstart.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    (tmp_path / "text.txt").write_text((ROOT / "README.md").read_text(encoding="utf-8") * 20, encoding="utf-8")
    for name in ("heal-wikitext.yaml", "lora-instructions.yaml"):
        shutil.copy(ROOT / "recipes" / name, tmp_path / "recipes")
    records = [
        {"instruction": f"Count to {n}.", "input": "", "output": " ".join(map(str, range(n)))} for n in range(60)
    ]
    (tmp_path / "instructions.json").write_text(json.dumps(records), encoding="utf-8")
    write_piqa(tmp_path / "data/piqa")
    pretrained = llama()
    pretrained.resize_token_embeddings(300)
    pretrained.save_pretrained(tmp_path / "pretrained")
    train_tokenizer([README], 300).save_pretrained(tmp_path / "pretrained")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REVFORMERS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def write_piqa(folder):
    folder.mkdir(parents=True)
    record = {"goal": "open a tin", "sol1": "with an opener", "sol2": "with a spoon"}
    (folder / "valid.jsonl").write_text(f"{json.dumps(record)}\n" * 3, encoding="utf-8")
    (folder / "valid-labels.lst").write_text("0\n" * 3, encoding="utf-8")


@pytest.mark.parametrize("commands", [readme_commands(), make_run_commands()], ids=["README", "make run"])
def test_the_commands_run(commands, workspace, capsys):
    assert len(commands) >= 2
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "revformers"
        smaller = SMALLER.get(" ".join(words[:2]), SMALLER.get(words[0], ""))
        assert main([*words, *shlex.split(smaller)]) == 0, capsys.readouterr().err
    assert (workspace / "runs/quickstart/model/config.json").is_file()
    if any(" report " in command for command in commands):
        assert "<svg" in (workspace / "report.html").read_text(encoding="utf-8")


def test_the_python_of_the_readme_runs(workspace, monkeypatch, capsys):
    load = transformers.AutoModelForCausalLM.from_pretrained

    def tiny_for_a_hub_id(name, **options):
        return load(name, **options) if Path(name).exists() else llama()

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", tiny_for_a_hub_id)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    exec("\n".join(blocks), {})
    assert "to the bit" in capsys.readouterr().out
    assert (workspace / "reversible-model/model.reversible.safetensors").is_file()


def result(name):
    return json.loads((ROOT / "lab/results" / f"{name}.json").read_text(encoding="utf-8"))


def mebibytes(value):
    return f"{value / 2**20:,.0f} MiB" if value >= 10 * 2**20 else f"{value / 2**20:.1f} MiB"


def quickstart_rows():
    """The three-arm table of `make run`."""
    comparison = result("quickstart-comparison")
    for row in comparison["arms"]["rows"]:
        ratio = row["time_over_store"]["median"]
        yield f"| {row['arm']} | {mebibytes(row['peak'])} | {ratio:.2f} | {row['losses'][-1]:.6f} |"


def depth_rows():
    """Peak memory against depth, of `make run`."""
    by_depth = defaultdict(dict)
    for point in result("quickstart-comparison")["depth"]["points"]:
        by_depth[point["layers"]][point["arm"]] = point["peak"]
    for layers, peaks in sorted(by_depth.items()):
        yield f"| {layers} | " + " | ".join(mebibytes(peaks[arm]) for arm in ("store", "checkpoint", "rebuild")) + " |"


def quartiles(ratio):
    return f"{ratio['median']:.2f} ({ratio['lower']:.2f} to {ratio['upper']:.2f})"


def bench_points(name):
    """The recipe of a study, and its points by arm."""
    study = result(name)
    return study["recipe"], {point["arm"]: point for point in study["points"]}


def time_rows():
    """Step time of rebuilding over that of its rivals, and of a budget at the peak of checkpointing."""
    for precision in ("float32", "bfloat16"):
        recipe, points = bench_points(f"bench-time-{precision}")
        figures = [
            quartiles(points[arm]["ratios"][rival])
            for arm, rival in (
                ("rebuild", "plain_checkpoint"),
                ("rebuild", "plain_store"),
                ("budget", "plain_checkpoint"),
            )
        ]
        yield f"| {precision}, width {recipe['model']['config']['hidden_size']} | {' | '.join(figures)} |"


def bench_rows(name):
    """Peak memory and time of every arm."""
    recipe, points = bench_points(name)
    for arm, point in points.items():
        over = quartiles(point["ratios"]["plain_checkpoint"]) if arm != "plain_checkpoint" else "1"
        yield f"| {recipe['precision']} | `{arm}` | {mebibytes(point['peak'])} | {over} |"


def same_batch_rows():
    """All arms at one batch, in both precisions."""
    for precision in ("float32", "bfloat16"):
        yield from bench_rows(f"bench-time-{precision}")


def length_rows():
    """Long sequences, at the peak of checkpointing, in two widths."""
    for name in ("bench-length-8192", "bench-length-8192-wide"):
        recipe, _ = bench_points(name)
        for row in bench_rows(name):
            yield f"| {recipe['model']['config']['hidden_size']} {row.removeprefix('| float32 ')}"


def layer_rows():
    """What lowers the peak of one layer."""
    for row in result("layer-memory")["rows"]:
        over = quartiles(row["time_over_rebuild"]) if row["way"] != "rebuild" else "1"
        yield f"| {row['way']} | {mebibytes(row['peak'])} | {row['peak_over_rebuild']:.0%} | {over} |"


def head_rows():
    """The head's loss and gradients by three ways."""
    for row in result("head-memory")["rows"]:
        errors = f"{row['loss_error']:.0e} | {row['weight_gradient_error']:.0e}"
        share = f"{row['peak_over_all_logits']:.1%}"
        yield f"| {row['case']} | {row['arm']} | {mebibytes(row['peak'])} | {share} | {errors} |"


def spread(figures):
    """The mean of some shares, with the lowest and the highest where there are several."""
    mean = f"{sum(figures) / len(figures):+.2%}"
    return mean if len(figures) == 1 else f"{mean} ({min(figures):+.2%} to {max(figures):+.2%})"


def increase(study, arm, bits):
    (row,) = (row for row in study["rows"] if row["arm"] == arm and row["bits"] == bits)
    return spread(list(row["increase_by_seed"].values()))


def conversion_rows():
    """Held-out loss increase of a real model, before any training."""
    alone, predicted = result("conversion-smollm2"), result("conversion-smollm2-samples")
    for bits in (4, 3, 2, 1, 0):
        increases = increase(alone, "blends alone", bits), increase(predicted, "predictor on state", bits)
        yield f"| {bits} | {' | '.join(increases)} |"


def real_rows():
    """The same by every way that was tried on it."""
    yield from form_rows("conversion-smollm2", ("blends alone",))
    yield from form_rows("conversion-smollm2-samples")
    yield from form_rows("conversion-smollm2-update")


def form_rows(name, arms=None):
    """Held-out loss increase by every way, or by some, and what each adds to a forward pass."""
    for row in result(name)["rows"]:
        assert row["gradients_bit_exact"]
        if arms is not None and row["arm"] not in arms:
            continue
        figures = spread(list(row["increase_by_seed"].values()))
        yield f"| {row['arm']} | {row['bits']:g} | {figures} | {row['added_compute']:+.0%} |"


def instruction_rows():
    """The same on instructions."""
    return form_rows("conversion-smollm2-instructions")


def small_rows():
    """The same of a small network."""
    return form_rows("conversion-wikitext-12L")


def healed(name):
    """Tokens and loss over the original's, along one run."""
    (run,) = result(f"healing-smollm2-{name}")["rows"]
    return [(tokens, f"{loss / run['original'] - 1:+.2%}") for tokens, loss in run["curve"]]


def healing_rows():
    """The real model before and after a short fine-tune."""
    for words, name in (("1", "1-bit"), ("0, `update`", "0-bits-update")):
        (_, before), *_, (tokens, after) = healed(name)
        yield f"| {words} | {before} | {after} | {tokens:,} |"


def one_bit_curve_rows():
    """Along the run at 1 bit."""
    return [f"| {tokens:,} | {over} |" for tokens, over in healed("1-bit")]


def no_bits_curve_rows():
    """Along the run at 0 bits."""
    return [f"| {tokens:,} | {over} |" for tokens, over in healed("0-bits-update")]


def accuracies(name):
    """Accuracy beside the original's by task and in the mean: the original's in percent, and the difference."""
    study = result(name)
    rows = [row for row in study["differences"] if row["metric"] == ("acc" if "grande" in row["task"] else "acc_norm")]
    (mean,) = (row for row in study["mean_differences"] if row["metric"] == "acc_norm, else acc")
    for task, row in [(row["task"].removeprefix("local_"), row) for row in rows] + [("mean", mean)]:
        difference, error = (100 * row["difference"][name] for name in ("value", "standard_error"))
        yield f"| {task} | {100 * row['against']['value']:.1f} |", f" {difference:+.1f} ± {error:.1f} |"


def accuracy_rows():
    """Accuracy of the real model converted at 2 bits, and healed at 0 bits."""
    studies = (accuracies(f"accuracy-smollm2-{name}") for name in ("2-bits", "0-bits-healed"))
    for (original, few), (same, none) in zip(*studies, strict=True):
        assert original == same
        yield original + few + none


def lora_step_rows():
    """Peak and time of a LoRA step of the real model."""
    for row in result("lora-step-smollm2")["rows"]:
        over = quartiles(row["time_over_checkpoint"]) if row["arm"] != "plain_checkpoint" else "1"
        yield f"| {row['way']} | {mebibytes(row['peak'])} | {over} |"


def deployment_rows():
    """Loss of the ordinary network with weights that were trained in a converted one."""
    studies = ("deployment-smollm2", "deployment-smollm2-seeds")
    rows = [row for study in studies for row in result(study)["rows"]]
    reference = {row["seed"]: row["deployed"] for row in rows if row["arm"] == "ordinary"}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        runs = [row for row in rows if row["arm"] == arm and row["seed"] in reference]
        losses = [f"{sum(row[name] for row in runs) / len(runs):.4f}" for name in ("trained", "deployed")]
        over = spread([row["deployed"] / reference[row["seed"]] - 1 for row in runs])
        yield f"| {arm} | {len(runs)} | {' | '.join(losses)} | {'-' if arm == 'ordinary' else over} |"


def annealing_rows():
    """Healing of the smallest model, with and without annealing."""
    study = result("healing-stories260K")
    for arm in dict.fromkeys(row["arm"] for row in study["rows"]):
        runs = [row for row in study["rows"] if row["arm"] == arm]
        before, after = ([row[when] / row["original"] - 1 for row in runs] for when in ("before", "after"))
        yield f"| {arm} | {study['tokens']:,} | {before[0]:+.2%} | {spread(after)} |"


def family_rows():
    """Five families through the commands."""
    for row in result("conversion-families")["rows"]:
        figures = [row["loss_by_bits"][bits] / row["original_loss"] - 1 for bits in ("2", "1", "0")]
        assert row["gradients_bit_exact"]
        assert row["cached_and_uncached_text_equal"]
        yield (
            f"| {row['family']} | {row['original_loss']:.2f} | "
            + " | ".join(f"{value:+.2%}" for value in figures)
            + " |"
        )


def plan_rows():
    """How far the planner is off."""
    rows = result("plan-accuracy")["rows"]
    for model, arm in dict.fromkeys((row["model"], row["arm"]) for row in rows):
        points = [row for row in rows if (row["model"], row["arm"]) == (model, arm)]
        errors = [row["planned"] / row["measured"] - 1 for row in points]
        assert max(map(abs, errors)) < 0.05
        first = points[0]
        figures = f"{first['measured']:,} | {first['planned']:,} | {min(errors):+.2%} to {max(errors):+.2%}"
        yield f"| {model} | {arm} | {figures} |"


def largest_batch_rows():
    """How far the largest batch that it finds is off."""
    for row in result("plan-accuracy")["largest_batches"]:
        yield f"| {row['model']} | {row['arm']} | {row['planned']} | {row['measured']} |"


TABLES = {
    "README.md": [quickstart_rows, depth_rows, time_rows, conversion_rows, healing_rows],
    "docs/plan.md": [plan_rows, largest_batch_rows],
    "docs/when-to-use.md": [depth_rows, same_batch_rows, length_rows, layer_rows, head_rows],
    "docs/conversion.md": [
        *(
            real_rows,
            instruction_rows,
            one_bit_curve_rows,
            no_bits_curve_rows,
            accuracy_rows,
            lora_step_rows,
            small_rows,
        ),
        *(annealing_rows, family_rows),
    ],
    "docs/deploy.md": [deployment_rows],
}


def test_the_gain_at_long_sequences_is_that_of_the_committed_result():
    _, points = bench_points("bench-length-8192")
    gain = points["budget"]["ratios"]["plain_checkpoint"]["median"]
    assert f"{gain:.2f} of checkpointing's at 8,192 tokens" in README


@pytest.mark.parametrize(
    ("page", "rows"),
    [(page, rows) for page, tables in TABLES.items() for rows in tables],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_the_figures_are_those_of_committed_results(page, rows):
    text = (ROOT / page).read_text(encoding="utf-8")
    expected = list(rows())
    assert expected
    for row in expected:
        assert row in text


def test_the_files_that_the_readme_links_to_exist():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 4
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link
