"""Tables of the README and the docs from committed results; cog writes them into the pages (``make tables``).

A page holds ``[[[cog tables.NAME()]]]`` in a comment, and cog replaces the text after it, up to ``[[[end]]]``, by the
output of the function. ``make lint`` fails if a page differs from the results.
"""

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import log2
from statistics import median
from typing import Any

from lab import REPOSITORY
from lab.bench.equal_peaks import budgets_at_peaks
from lab.bench.step_time import Quartiles
from lab.docs.markdown import committed, mebibytes, quartiles, result, show, spread
from revformers.errors import counted
from revformers.training.argument_table import (
    ARGUMENTS,
    AS_USUAL,
    PROMPT_ARGUMENTS,
    TRAINING_ARGUMENTS,
    Argument,
)

ARMS = ("store", "checkpoint", "rebuild")


def peaks_by_depth() -> dict[int, dict[str, int]]:
    """Return the peak of every arm in bytes, by number of layers."""
    peaks: dict[int, dict[str, int]] = defaultdict(dict)
    for point in result("quickstart-comparison")["depth"]["points"]:
        peaks[point["layers"]][point["arm"]] = point["peak"]
    return dict(sorted(peaks.items()))


def depth() -> None:
    """Print peak memory against depth, as `make run` measures it."""
    rows = ((layers, *(mebibytes(peaks[arm]) for arm in ARMS)) for layers, peaks in peaks_by_depth().items())
    show("layers | " + " | ".join(ARMS), rows)


def depth_growth() -> None:
    """Print sentences on how the peak of rebuilding grows with the layers, with and without side information."""
    for name, dynamics in (("midpoint", "the midpoint rule"), ("blended_midpoint", "a blend of 1/4")):
        points = result(f"memory-{name}-float32")["points"]
        peaks = {point["layers"]: point["peak"] for point in points if point["arm"] == "rebuild"}
        fewest, most = min(peaks), max(peaks)
        growth = (peaks[most] - peaks[fewest]) / (most - fewest)
        print(f"From {fewest} to {most} layers, the peak under {dynamics} grew by {growth:,.0f} bytes per layer.")


def depth_caption() -> None:
    """Print the deepest row as a sentence."""
    layers, peaks = list(peaks_by_depth().items())[-1]
    store, checkpoint, rebuild = (mebibytes(peaks[arm]) for arm in ARMS)
    print(f"At {layers} layers, storing takes {store}, checkpointing {checkpoint} and rebuilding {rebuild}.")


def depth_lines() -> None:
    """Print the curves of docs/memory.svg: peak against depth, both axes logarithmic to base 2."""
    places: dict[str, list[tuple[float, float]]] = {arm: [] for arm in ARMS}
    for layers, peaks in peaks_by_depth().items():
        for arm in ARMS:
            across, up = log2(layers / 4), log2(peaks[arm] / 2**20 / 4)
            places[arm].append((90 + 130 * across, 300 - 40 * up))
    for arm, points in places.items():
        x, y = points[-1]
        line = " ".join(f"{across:.0f},{down:.0f}" for across, down in points)
        size = mebibytes(list(peaks_by_depth().values())[-1][arm])
        label = f'<text x="{x + 12:.0f}" y="{y + 5:.0f}">{arm}, {size}</text>'
        print(f'<g class="{arm}"><polyline points="{line}"/>{label}</g>')


def quickstart() -> None:
    """Print the three arms of `make run`."""
    show(
        "activations | peak memory | time over store | loss after ten steps",
        (
            (
                row["arm"],
                mebibytes(row["peak"]),
                f"{row['time_over_store']['median']:.2f}",
                f"{row['losses'][-1]:.6f}",
            )
            for row in result("quickstart-comparison")["arms"]["rows"]
        ),
    )


def _bench(name: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the recipe of a study, and its points by arm."""
    study = result(name)
    return study["recipe"], {point["arm"]: point for point in study["points"]}


def _arms(name: str) -> Iterator[tuple[str, str, str]]:
    _, points = _bench(name)
    for arm, point in points.items():
        over = quartiles(point["ratios"]["plain_checkpoint"]) if arm != "plain_checkpoint" else "1"
        yield f"`{arm}`", mebibytes(point["peak"]), over


def step_time() -> None:
    """Print the step times of rebuilding over those of its rivals, and of a budget at the peak of checkpointing."""
    rows = []
    for precision in ("float32", "bfloat16"):
        recipe, points = _bench(f"bench-time-{precision}")
        pairs = ("rebuild", "plain_checkpoint"), ("rebuild", "plain_store"), ("budget", "plain_checkpoint")
        ratios = (quartiles(points[arm]["ratios"][rival]) for arm, rival in pairs)
        rows.append((f"{precision}, width {recipe['model']['config']['hidden_size']}", *ratios))
    show(" | rebuild over checkpoint | rebuild over store | budget over checkpoint", rows)


def same_batch() -> None:
    """Print all arms at one batch, in both precisions."""
    rows = [(precision, *row) for precision in ("float32", "bfloat16") for row in _arms(f"bench-time-{precision}")]
    show("precision | arm | peak | time over `plain_checkpoint`", rows)


def long_sequences() -> None:
    """Print long sequences at the peak of checkpointing, in two widths."""
    rows = []
    for name in ("bench-length-8192", "bench-length-8192-wide"):
        recipe, _ = _bench(name)
        rows += [(recipe["model"]["config"]["hidden_size"], *row) for row in _arms(name)]
    show("width | arm | peak | time over `plain_checkpoint`", rows)


def _shape(study: Mapping[str, Any]) -> str:
    """Return the width, the batch and the precision of a study in words."""
    recipe = study["recipe"]
    width, batch = recipe["model"]["config"]["hidden_size"], recipe["batch_size"]
    return f"{recipe['precision']}, width {width}, {batch} x {recipe['sequence_length']:,} tokens"


def _over(point: Mapping[str, Any], rival: str) -> str:
    """Return the time of a point over that of another arm, if both were timed."""
    ratio = point.get("ratios", {}).get(rival)
    return "1" if point["arm"] == rival else quartiles(ratio) if ratio else "-"


def _rivals(study: Mapping[str, Any]) -> None:
    """Print the arms of a study of budgets, and the budgets at the peaks of its rivals."""
    values = list(dict.fromkeys(point["value"] for point in study["points"]))
    points = {(point["value"], point["arm"]): point for point in study["points"]}
    layers = study["recipe"]["model"]["config"]["num_hidden_layers"]
    print(f"\n{layers} layers, {_shape(study)}, {study['recipe']['rounds']} interleaved rounds:")
    show(
        "arm | peak | time over `plain_store` | time over `plain_checkpoint`",
        (
            (
                f"`{arm}`",
                mebibytes(point["peak"]) if point["fits"] else "does not fit",
                _over(point, "plain_store"),
                _over(point, "plain_checkpoint"),
            )
            for (value, arm), point in points.items()
            if value == values[0] and arm != "budget"
        ),
    )
    rows = []
    for rival, budget in budgets_at_peaks(study):
        both = rival["fits"] and budget["fits"]
        peaks = (mebibytes(rival["peak"]), mebibytes(budget["peak"])) if both else ("-", "none equal")
        rows.append((f"`{rival['arm']}`", *peaks, _over(budget, rival["arm"])))
    show("at the peak of | its peak | peak of the budget | time of the budget over it", rows)


def rivals() -> None:
    """Print the strongest rivals, and budgets at their peaks."""
    for study in committed("bench-rivals*"):
        _rivals(study)


def gpu_rivals() -> None:
    """Print the same on a GPU."""
    for study in committed("bench-gpu-rivals-*"):
        print(f"\n{study['environment']['accelerator']}:")
        _rivals(study)


def states() -> None:
    """Print rebuilding with 32-bit states against 64-bit states, and 2 bits of side information against none."""
    rows, bits_rows = [], []
    for study in committed("bench-states-*"):
        points = {(point["value"], point["arm"]): point for point in study["points"]}
        for layers in dict.fromkeys(layers for layers, _ in points):
            for bits in (0, 2):
                wide, narrow = (points[layers, f"rebuild:{bits}:{states}"] for states in ("int64", "int32"))
                share = f"{narrow['peak'] / wide['peak']:.2f}"
                peaks = mebibytes(wide["peak"]), mebibytes(narrow["peak"]), share
                rows.append((_shape(study), layers, bits, *peaks, _within_rounds(narrow, wide)))
            for states in ("int64", "int32"):
                without, with_bits = (points[layers, f"rebuild:{bits}:{states}"] for bits in (0, 2))
                bits_rows.append((_shape(study), layers, states, _within_rounds(with_bits, without)))
    if not rows:
        return
    show("network | layers | bits | peak, int64 | peak, int32 | int32 over int64 | time, int32 over int64", rows)
    show("network | layers | states | time, 2 bits over 0 bits", bits_rows)


def _within_rounds(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return the time of one arm over that of another within a round, if both were timed."""
    both = one.get("seconds_by_round", ()), other.get("seconds_by_round", ())
    ratios = [first / second for first, second in zip(*both, strict=True)] if all(both) else []
    return quartiles(dataclasses.asdict(Quartiles.of(ratios))) if ratios else "-"


def one_layer() -> None:
    """Print the methods that lower the peak of one layer."""
    show(
        "method | peak | share of rebuild's peak | time over rebuild",
        (
            (
                row["way"],
                mebibytes(row["peak"]),
                f"{row['peak_over_rebuild']:.0%}",
                quartiles(row["time_over_rebuild"]) if row["way"] != "rebuild" else "1",
            )
            for row in result("layer-memory")["rows"]
        ),
    )


def head() -> None:
    """Print the head's loss and gradients by three methods."""
    show(
        "precision | method | peak | share of all logits | error of the loss | error of the weight's gradient",
        (
            (
                row["case"],
                row["arm"],
                mebibytes(row["peak"]),
                f"{row['peak_over_all_logits']:.1%}",
                f"{row['loss_error']:.0e}",
                f"{row['weight_gradient_error']:.0e}",
            )
            for row in result("head-memory")["rows"]
        ),
    )


def evidence() -> None:
    """Print the cost of comparing second evaluations."""
    show(
        "width | tokens | precision | share of a step | step over one without",
        (
            (
                row["width"],
                f"{row['batch']} x {row['tokens']}",
                row["precision"],
                f"{row['share_inside_the_comparison']['median']:.1%}",
                quartiles(row["over_without_evidence"]["rebuild"]),
            )
            for row in result("evidence-cost")["rows"]
        ),
    )


def kernel_launches() -> None:
    """Print how many kernels a layer launches in a step."""
    rows = result("kernel-launches")["rows"]
    checkpoint = next(row["launches_per_layer"] for row in rows if row["arm"] == "plain_checkpoint")
    show(
        "activations | operations per layer | over `plain_checkpoint`",
        (
            (
                f"`{row['arm']}`" if " " not in row["arm"] else row["arm"],
                f"{row['launches_per_layer']:.0f}",
                f"{row['launches_per_layer'] / checkpoint:.2f}",
            )
            for row in rows
        ),
    )


def stream_gradients() -> None:
    """Print the error of whole gradients by the dtype in which those of states are summed."""
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in result("stream-gradients")["rows"]:
        for dtype, error in row["errors"].items():
            found[row["network"], row["dynamics"]][dtype].append(error)
    show(
        "network | dynamics | in float32 | the waiting one in bfloat16 | in bfloat16",
        (
            (
                network,
                dynamics,
                *(
                    f"{median(errors[dtype]):.1%}" if dtype in errors else ""
                    for dtype in ("float32", "waiting", "bfloat16")
                ),
            )
            for (network, dynamics), errors in found.items()
        ),
    )


def fuzz() -> None:
    """Print the outcomes of the committed fuzzing run."""
    run = result("fuzz")
    show("outcome | set-ups", [(name, f"{count:,}") for name, count in run["set_ups"].items()])
    compared, farthest = run["compared_with_the_recurrence"], run["farthest"]
    print(
        f"The run compared {run['gradients_compared']:,} gradients and found {len(run['failures'])} failures. In "
        f"{compared} set-ups the gradients were also compared with an independent implementation of the recurrence; "
        f"the largest difference was {farthest:.0e} of the size of the tensor.\n"
    )


def kills() -> None:
    """Print the outcomes of the committed study of killed runs."""
    study = result("kills")
    groups: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for run in study["runs"]:
        groups[run["command"], run["processes"]].append(run)
    rows = [
        (command, processes, len(runs), sum(len(run["kills"]) for run in runs), sum(run["identical"] for run in runs))
        for (command, processes), runs in groups.items()
    ]
    show("command | processes | runs | kills | runs with identical weights and losses", rows)
    phases = study["phases"]
    print(f"Of the {study['kills']} kills, {phases['writing files']} came while files were being written.")
    if "hung" in study:
        print(f"{study['hung'] or 'None'} of the processes had to be stopped by the study.")
    if sentences := [sentence for run in study["runs"] for sentence in run["sentences"]]:
        print("The other runs ended with a sentence:\n")
        print("\n".join(f"* {sentence}" for sentence in sentences))


def _increase(study: Mapping[str, Any], arm: str, bits: int) -> str:
    (row,) = (row for row in study["rows"] if row["arm"] == arm and row["bits"] == bits)
    return spread(list(row["increase_by_seed"].values()))


def conversion() -> None:
    """Print the held-out loss increase of a real model, before any training."""
    alone, predicted = result("conversion-smollm2"), result("conversion-smollm2-samples")
    rows = (
        (bits, _increase(alone, "blends alone", bits), _increase(predicted, "predictor on state", bits))
        for bits in (4, 3, 2, 1, 0)
    )
    show("bits per element and layer | blends alone | with the default predictor", rows)


def predictor_cost() -> None:
    """Print how much computation the default predictor adds to a forward pass, as a sentence."""
    (share,) = {row["added_compute"] for row in result("conversion-smollm2-samples")["rows"]}
    print(f"The default predictor adds {share:.0%} to the operations of a forward pass.")


def conversion_methods() -> None:
    """Print the loss increase of the real model for every method that was tried on it."""
    rows = [*_methods("conversion-smollm2", ("blends alone",)), *_methods("conversion-smollm2-samples")]
    _show_methods([*rows, *_methods("conversion-smollm2-update")])


def conversion_on_instructions() -> None:
    """Print the loss increase of the real model on instructions."""
    _show_methods(_methods("conversion-smollm2-instructions"))


def conversion_of_a_small_model() -> None:
    """Print the loss increase of a small network."""
    _show_methods(_methods("conversion-wikitext-12L"))


def _show_methods(rows: Iterable[Sequence[Any]]) -> None:
    show("method | bits | loss increase | added compute", rows)


def _methods(name: str, arms: Sequence[str] | None = None) -> Iterator[tuple[str, str, str, str]]:
    """Yield the held-out loss increase for every method, or for `arms`, and the computation that each adds."""
    for row in result(name)["rows"]:
        assert row["gradients_bit_exact"]
        if arms is None or row["arm"] in arms:
            figures = spread(list(row["increase_by_seed"].values()))
            yield row["arm"], f"{row['bits']:g}", figures, f"{row['added_compute']:+.0%}"


def _healed(name: str) -> list[tuple[int, str]]:
    """Return tokens and the loss relative to the original's, along one run."""
    (run,) = result(f"healing-smollm2-{name}")["rows"]
    return [(tokens, f"{loss / run['original'] - 1:+.2%}") for tokens, loss in run["curve"]]


def healing() -> None:
    """Print the loss of the real model before and after a short fine-tune."""
    rows = []
    for words, name in (("1", "1-bit"), ("0, predictor `update`", "0-bits-update")):
        (_, before), *_, (tokens, after) = _healed(name)
        rows.append((words, before, after, f"{tokens:,}"))
    show("bits | before | after | tokens", rows)


def healing_curve(name: str) -> None:
    """Print the loss relative to the original's along one run, ``"1-bit"`` or ``"0-bits-update"``."""
    show("tokens | loss increase", ((f"{tokens:,}", over) for tokens, over in _healed(name)))


def states_of_the_real_model() -> None:
    """Print the held-out loss of the converted real model in every format of its states."""
    rows = []
    for row in result("state-loss")["converted"]:
        losses = row["loss_by_format"]
        for states, loss in losses.items():
            name = f"{states}, as chosen" if states == row["chosen"] else states
            change = "" if loss is None or states == "int64" else f"{loss / losses['int64'] - 1:+.3%}"
            figures = "out of range" if loss is None else f"{loss:.4f}", change
            rows.append((f"{row['bits']:g}", name, *figures))
    show("bits | states | held-out loss | against int64", rows)


def largest_magnitude() -> None:
    """Print the largest magnitude in the real model and the format that it gets, as a sentence."""
    row = result("state-loss")["converted"][0]
    print(f"SmolLM2-135M-Instruct holds a magnitude of {row['largest_magnitude']:,.0f} and gets `{row['chosen']}`.")


def states_in_training() -> None:
    """Print the validation loss after trainings with states of 64 and of 32 bits, and what other seeds change."""
    study, rows, spreads = result("state-loss"), [], []
    for part in ("fine-tuned", "from scratch"):
        losses = [(row["seed"], row["after"]["int64"], row["after"]["auto"]) for row in study[part]]
        rows += [
            (part, seed, f"{wide:.4f}", f"{narrow:.4f}", f"{narrow / wide - 1:+.3%}") for seed, wide, narrow in losses
        ]
        wide = [loss for _, loss, _ in losses]
        spreads.append(f"{max(wide) / min(wide) - 1:.2%} {part}")
    show("training | seed | 64 bits | 32 bits | difference", rows)
    print(f"With 64 bits the losses of the seeds differ by up to {' and '.join(spreads)}.")


def _accuracies(name: str) -> Iterator[tuple[str, str, str]]:
    """Yield each task, the original's accuracy in percent, and the difference from it."""
    study = result(name)
    rows = [row for row in study["differences"] if row["metric"] == ("acc" if "grande" in row["task"] else "acc_norm")]
    (mean,) = (row for row in study["mean_differences"] if row["metric"] == "acc_norm, else acc")
    for task, row in [(row["task"].removeprefix("local_"), row) for row in rows] + [("mean", mean)]:
        difference, error = (100 * row["difference"][name] for name in ("value", "standard_error"))
        yield task, f"{100 * row['against']['value']:.1f}", f"{difference:+.1f} ± {error:.1f}"


def accuracy() -> None:
    """Print the accuracy of the real model converted at 2 bits, and healed at 0 bits."""
    rows = []
    studies = (_accuracies(f"accuracy-smollm2-{name}") for name in ("2-bits", "0-bits-healed"))
    for (task, original, few), (same_task, same, none) in zip(*studies, strict=True):
        assert (task, original) == (same_task, same)
        rows.append((task, original, few, none))
    show("task | ordinary | 2 bits | 0 bits, healed", rows)


def lora_step() -> None:
    """Print peak and time of a LoRA step of the real model."""
    show(
        "network and activations | peak | time over checkpointing",
        (
            (
                row["way"],
                mebibytes(row["peak"]),
                quartiles(row["time_over_checkpoint"]) if row["arm"] != "plain_checkpoint" else "1",
            )
            for row in result("lora-step-smollm2")["rows"]
        ),
    )


def _deployments() -> Iterator[tuple[str, list[dict[str, Any]], list[float]]]:
    """Yield the trained network, its runs, and their deployed losses relative to ordinary training with equal seeds."""
    rows = [row for name in ("deployment-smollm2", "deployment-smollm2-seeds") for row in result(name)["rows"]]
    reference = {row["seed"]: row["deployed"] for row in rows if row["arm"] == "ordinary"}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        runs = [row for row in rows if row["arm"] == arm and row["seed"] in reference]
        yield arm, runs, [row["deployed"] / reference[row["seed"]] - 1 for row in runs]


def deployment() -> None:
    """Print the loss of the ordinary network with weights that were trained in a converted one."""
    rows = []
    for arm, runs, over in _deployments():
        losses = [f"{sum(row[name] for row in runs) / len(runs):.4f}" for name in ("trained", "deployed")]
        rows.append((arm, len(runs), *losses, "-" if arm == "ordinary" else spread(over)))
    show("trained network | seeds | loss as trained | loss deployed | difference from ordinary training", rows)


def deployment_conditions() -> None:
    """Print the conditions of the runs, as a sentence."""
    study = result("deployment-smollm2")
    first = study["rows"][0]
    print(
        f"LoRA of rank 16 in {study['dtype']} on 1,100 instructions: {study['steps']} steps, {first['tokens']:,} "
        f"tokens. Validation loss on {study['held_out']} other records; {first['before']:.4f} before training."
    )


def deployment_sentence() -> None:
    """Print the cost of the recipe's setting, as a sentence."""
    (over,) = (over for arm, _, over in _deployments() if arm.startswith("6 bits"))
    print(
        f"At 6 bits, over {len(over)} seeds, the loss of the deployed network differed from that of fine-tuning the "
        f"ordinary network by {spread(over)}."
    )


def annealing() -> None:
    """Print the healing of the smallest model, with and without annealing."""
    study, rows = result("healing-stories260K"), []
    for arm in dict.fromkeys(row["arm"] for row in study["rows"]):
        runs = [row for row in study["rows"] if row["arm"] == arm]
        before, after = ([row[when] / row["original"] - 1 for row in runs] for when in ("before", "after"))
        rows.append((arm, f"{study['tokens']:,}", f"{before[0]:+.2%}", spread(after)))
    show("method | tokens | before | after", rows)


def conversion_of_families() -> None:
    """Print the results of five families that were run through the commands."""
    rows = []
    for row in result("conversion-families")["rows"]:
        assert row["gradients_bit_exact"]
        assert row["cached_and_uncached_text_equal"]
        increases = (f"{row['loss_by_bits'][bits] / row['original_loss'] - 1:+.2%}" for bits in ("2", "1", "0"))
        rows.append((row["family"], f"{row['original_loss']:.2f}", *increases))
    show("family | original loss | 2 bits | 1 bit | 0 bits", rows)


def families() -> None:
    """Print how many architectures the survey found to be exact, as a sentence."""
    page = (REPOSITORY / "docs/appendix/families.md").read_text(encoding="utf-8")
    blocks = [line.split(" | ")[2] for line in page.splitlines() if line.startswith("| ")][1:]
    exact = blocks.count("exact")
    print(f"Of the {len(blocks)} causal language models of transformers, {exact} train with exact gradients.")


def plan_accuracy() -> None:
    """Print the planner's error."""
    measured, rows = result("plan-accuracy")["rows"], []
    for model, arm in dict.fromkeys((row["model"], row["arm"]) for row in measured):
        points = [row for row in measured if (row["model"], row["arm"]) == (model, arm)]
        errors = [row["planned"] / row["measured"] - 1 for row in points]
        assert max(map(abs, errors)) < 0.05
        first = points[0]
        figures = f"{first['measured']:,}", f"{first['planned']:,}", f"{min(errors):+.2%} to {max(errors):+.2%}"
        rows.append((model, arm, *figures))
    show("network | activations | measured, bytes | planned, bytes | error", rows)


def plan_advice() -> None:
    """Print what the planner advises for every model and machine of the study."""
    rows = []
    for case in result("plan-advice")["rows"]:
        chosen = case["plan"]["chosen"]
        advice = "nothing fits" if chosen is None else _way(case["plan"]["setups"][chosen])
        host = case["host"] if case["link"] is None else f"{case['host']}, {case['link']}/s"
        rows.append((case["case"], case["memory"], host, advice))
    show("training | device | host | advice", rows)


def plan_rows() -> None:
    """Print the rows of the first and the last plan of the study."""
    cases, rows = result("plan-advice")["rows"], []
    for case in (cases[0], cases[-1]):
        for row in case["plan"]["setups"]:
            sizes = f"{sum(row['memory'].values()) / 2**30:.1f} GiB", f"{row['host'] / 2**30:.1f} GiB"
            rows.append((case["case"], _way(row), *sizes, row["largest_batch"], f"{row['time']:.2f}"))
    show("training | activations | one sequence | host | sequences that fit | time", rows)


def _way(row: Mapping[str, Any]) -> str:
    """Return the name of a row of a plan, with its bits and its tiles."""
    bits = "" if row["bits"] is None else f", {counted(row['bits'], 'bit')}"
    tiles = "" if row["mlp_tile"] is None else f", in MLP tiles of {row['mlp_tile']:,} tokens"
    return f"{row['name']}{bits}{tiles}"


def largest_batches() -> None:
    """Print the error of the largest batch that the planner finds."""
    show(
        "network | activations | planned | measured",
        (
            (row["model"], row["arm"], row["planned"], row["measured"])
            for row in result("plan-accuracy")["largest_batches"]
        ),
    )


def _rows(texts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return rows of arguments and what is said about them, with all arguments of the same text in one row."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, text in texts.items():
        names[text].append(f"`{name}`")
    return [(", ".join(same), text) for text, same in names.items()]


def _in_a_recipe(argument: Argument) -> str:
    if argument.remedy:
        return "refused: " + argument.remedy.format(activations="dynamics.activations or conversion.activations")
    values = f"one of {', '.join(argument.values)}" if argument.values else ""
    return "; ".join(filter(None, ["passed on", values, argument.note]))


def _show_arguments(arguments: Mapping[str, Argument]) -> None:
    """Print a table of arguments, and those that are only passed on as a list, one line for each first word."""
    show(
        "argument | in a recipe", _rows({name: _in_a_recipe(one) for name, one in arguments.items() if one != AS_USUAL})
    )
    passed = [name for name, one in arguments.items() if one == AS_USUAL]
    words = Counter(name.partition("_")[0] for name in passed)
    lines: dict[str, list[str]] = defaultdict(list)
    for name in passed:
        word = name.partition("_")[0]
        lines[f"{word}_" if words[word] > 1 else ""].append(f"`{name}`")
    print("All others are passed on, and do what the documentation of their library says:\n")
    for word in sorted(lines, key=lambda word: (word == "", word)):
        print(f"* {', '.join(lines[word])}")
    print()


def trainer_arguments() -> None:
    """Print what the arguments of a Trainer do in a recipe."""
    _show_arguments(TRAINING_ARGUMENTS)


def prompt_arguments() -> None:
    """Print what the further arguments of TRL's SFTTrainer do in a recipe."""
    _show_arguments(PROMPT_ARGUMENTS)


def own_trainer_arguments() -> None:
    """Print what the arguments do to a reversible model in a Trainer of one's own, where that is special."""
    show(
        "argument | in your own Trainer",
        _rows({name: one.in_your_trainer for name, one in ARGUMENTS.items() if one.in_your_trainer}),
    )


_IN_WORDS = {"refused": "", "right": "No harm: ", "warned": "Warns, and ends with ", "not run": "Not tried: "}
"""The beginnings of what happens, by result; any other is in bold."""


def faults(section: str) -> None:
    """Print the faults of a section, what a user sees of each, and what to do."""
    rows = [row for row in result("faults")["faults"] if row["section"] == section]
    show(
        "fault | what happens | what to do",
        ((row["fault"], _happens(row) + _elsewhere(row), row["remedy"]) for row in rows),
    )


def _happens(row: Mapping[str, str]) -> str:
    seen = f"`{row['seen']}`" if re.fullmatch(r"\w+(Error|Interrupt)", row["seen"]) else row["seen"]
    beginning = _IN_WORDS.get(row["result"], f"**{row['result']}**: ")
    words = f"{beginning}{seen}: {row['sentence']}" if row["sentence"] else f"{beginning}{seen}"
    return f"{words}.".replace("|", "\\|").replace("<", "&lt;")


def _elsewhere(row: Mapping[str, Any]) -> str:
    """Return what happens under the policies whose result is another."""
    others: dict[str, list[str]] = defaultdict(list)
    for policy, outcome in row.get("policies", {}).items():
        if any(outcome[name] != row[name] for name in ("result", "seen")):
            others[_happens(outcome)].append(f"`{policy}`")
    return "".join(f" Under {', '.join(policies)}: {happens}" for happens, policies in others.items())
