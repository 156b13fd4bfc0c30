"""Tables of docs/science/reproduction.md: figures of the paper and of others beside ours, and commands of results.

What others report is in lab/docs/paper.json, with where it was read. Ours come from committed results.
"""

import json
import re
from collections.abc import Iterator
from statistics import linear_regression
from typing import Any

from lab import REPOSITORY
from lab.bench.step_time import Quartiles
from lab.docs.markdown import RESULTS, mebibytes, quartiles, result, show
from lab.docs.tables import ARMS, peaks_by_depth
from revformers.byte_size import parse_size

PAPER: dict[str, Any] = json.loads((REPOSITORY / "lab/docs/paper.json").read_text(encoding="utf-8"))
HEADS = ("chunked", "own")
DYNAMICS = ("residual", "midpoint", "blended_midpoint", "leapfrog", "hamiltonian")

RENAMED = (
    (r"^python benchmarks/(\w+)\.py", r"python -m lab.studies.\1"),
    (r"^revformers (bench|evaluate|compare|report)\b", r"python -m lab \1"),
    (r"(?<= )(?:lab|benchmarks)/results/", ""),
)
"""What commands were called when some of the results were measured, and what they are called now."""

NARROW = (
    "python -m lab bench depth recipes/bench/cpu-time.yaml --batch_size 4 --sequence_length 256 --depths 4 16 48 96 "
    "--model.config.hidden_size 128 --model.config.intermediate_size 352 --model.config.num_attention_heads 4 "
    "--model.config.num_key_value_heads 4 --arms"
)
REPLACED = {
    "memory-midpoint-float32": f"{NARROW} checkpoint rebuild --out memory-midpoint-float32.json",
    "memory-blended_midpoint-float32": f"{NARROW} rebuild:2 --out memory-blended_midpoint-float32.json",
}
"""Today's commands for results of a command that does not exist any more."""


def depth_against_theirs() -> None:
    """Print how the peak of each arm grows with a layer, as a sentence."""
    peaks = peaks_by_depth()
    few, many = min(peaks), max(peaks)
    growth = (f"{mebibytes((peaks[many][arm] - peaks[few][arm]) / (many - few))} ({arm})" for arm in ARMS)
    print(f"From {few} to {many} layers, every further layer adds {', '.join(growth)}.")


def table_3() -> None:
    """Print the paper's Table 3 and what the planner finds for the shape of GPT-2 large."""
    rows = []
    for row in PAPER["table_3"]["rows"]:
        planned = (
            case["largest_batch"][way][row["memory"]]
            for case in _planned(3)
            for way in ("store", "checkpoint", "rebuild")
        )
        rows.append((f"{row['memory']} ({row['gpus']})", row["stored"], row["midpoint"], *planned))
    show(
        "memory | paper: stored | paper: midpoint | chunked head: store | checkpoint | rebuild "
        "| own head: store | checkpoint | rebuild",
        rows,
    )


def table_3_lines() -> None:
    """Print the line through the paper's batches against the memory, for each of its columns."""
    memory = [parse_size(row["memory"]) / 1e9 for row in PAPER["table_3"]["rows"]]
    for column in ("stored", "midpoint"):
        slope, rest = linear_regression([row[column] for row in PAPER["table_3"]["rows"]], memory)
        print(f"{column.capitalize()}: {slope:.2f} GB a sequence, and {rest:.1f} GB beside the sequences.")
    case = _planned(3)[0]
    logits = 4 * case["length"] * case["vocabulary"] / 1e9
    print(f"The logits of {case['length']:,} tokens over {case['vocabulary']:,} words: {logits:.2f} GB in float32.")


def table_4() -> None:
    """Print the paper's Table 4, and the largest batch and the time of a step that the planner finds."""
    planned = {(case["layers"], case["head"]): case for case in _planned(4)}
    rows = []
    for row in PAPER["table_4"]["rows"]:
        batches = [
            next(iter(planned[row["layers"], head]["largest_batch"][way].values()))
            for head in HEADS
            for way in ("store", "checkpoint", "rebuild")
        ]
        time = planned[row["layers"], "chunked"]["time_over_store"]["rebuild"]
        theirs = row["stored"], row["midpoint"], f"{row['throughput']:+.1%}"
        rows.append((row["layers"], *theirs, *batches, f"{time:.2f}"))
    show(
        "layers | paper: stored | midpoint | throughput | chunked head: store | checkpoint | rebuild "
        "| own head: store | checkpoint | rebuild | time of a step, rebuild over store",
        rows,
    )


def table_4_growth() -> None:
    """Print how the paper's largest batches compare with the plan's, how they fall with depth, and what logits take."""
    speed = PAPER["table_4"]["samples_per_second"]
    print(
        f"In the paper, {speed['layers']} layers train {speed['stored']} samples per second stored and "
        f"{speed['midpoint']} as a midpoint network."
    )
    paper, planned = PAPER["table_4"]["rows"], [case for case in _planned(4) if case["head"] == "chunked"]
    stored, ours = (
        [next(iter(case["largest_batch"][way].values())) for case in planned] for way in ("store", "rebuild")
    )
    shares = ", ".join(f"{row['stored'] / batch:.1f}" for row, batch in zip(paper, stored, strict=True))
    print(f"The paper's stored batches are {shares} times those of the plan with the chunked head.")
    theirs = 1 - paper[-1]["midpoint"] / paper[0]["midpoint"]
    print(
        f"From {paper[0]['layers']} to {paper[-1]['layers']} layers the largest batch of the paper's midpoint network "
        f"falls by {theirs:.0%}, that of the plan by {1 - ours[-1] / ours[0]:.0%}."
    )
    most, length, vocabulary = paper[0]["midpoint"], planned[0]["length"], planned[0]["vocabulary"]
    print(
        f"The logits of {most:,} sequences of {length:,} tokens over {vocabulary:,} words would take "
        f"{2 * most * length * vocabulary / 1e9:,.0f} GB in bfloat16."
    )


def table_4_measured() -> None:
    """Print the largest batches of Table 4 in miniature, and the sequences per second there over those of storing."""
    study, arms = result("bench-table4-cpu"), ("plain_store", "plain_checkpoint", "rebuild")
    points = {
        (point["value"], point["arm"]): point
        for point in study["points"]
        if point["memory"] in study["recipe"]["memory"]
    }
    rows = []
    for layers in sorted({value for value, _ in points}):
        batches, speeds = [], []
        for arm in arms:
            point, store = points[layers, arm], points[layers, "plain_store"]
            rounds = zip(store["seconds_by_round"], point["seconds_by_round"], strict=True)
            gain = point["batch_size"] / store["batch_size"]
            batches.append(f"{point['batch_size']:,}")
            speeds.append(quartiles(vars(Quartiles.of([gain * stored / own for stored, own in rounds]))))
        rows.append((layers, *batches, *speeds[1:]))
    show("layers | store | checkpoint | rebuild | speed of checkpointing over storing | of rebuilding", rows)


def _planned(table: int) -> list[dict[str, Any]]:
    """Return the planned cases of a table."""
    return [row for row in result("paper-tables")["rows"] if row["table"] == table]


def indexed() -> None:
    """Print the figures of the paper that an index of papers lists."""
    show("measure | figure", PAPER["indexed"]["rows"])


def public_reproductions() -> None:
    """Print what public reproductions report."""
    rows = []
    for one in PAPER["reproductions"]:
        link = f"[{one['repository'].partition('/')[0]}](https://github.com/{one['repository']})"
        losses = (f"{one['loss'][name]:.3f}" if name in one["loss"] else "" for name in DYNAMICS)
        speed = one["tokens_per_second"]
        few, many = one["largest_batch"]
        before, after = one["loss_at_larger_batch"]
        rows.append(
            (
                link,
                f"{one['data']}, {one['device']}",
                *losses,
                f"{speed['reversible'] / speed['residual']:.2f}",
                f"{few} to {many:,}",
                f"{before:.3f} to {after:.3f}",
            )
        )
    show(
        "who | data, device | ordinary | midpoint | blended | leapfrog | Hamiltonian | speed at the same batch "
        "| largest batch | loss at a larger batch",
        rows,
    )


def two_evaluations() -> None:
    """Print the loss increase of the paper's conversion and of ours before any training, by bits."""
    increase = {
        (row["arm"], row["bits"]): f"{row['increase_by_seed']['0']:+.2%}"
        for row in result("conversion-wikitext-12L-two-evaluations")["rows"]
    }
    arms = ("two evaluations", "blends alone, uniform", "predictor on state")
    bits = sorted({bits for _, bits in increase}, reverse=True)
    show("bits | " + " | ".join(arms), ((f"{one:g}", *(increase[arm, one] for arm in arms)) for one in bits))


def commands() -> None:
    """Print today's command of every committed result."""
    show("result | command", ((f"`{name}.json`", f"`{command}`") for name, command in commands_of_results()))


def commands_of_results() -> Iterator[tuple[str, str]]:
    """Yield the name of every committed result and the command that measures it anew today."""
    for file in sorted(RESULTS.glob("*.json")):
        command = REPLACED.get(file.stem) or result(file.stem)["command"]
        for before, now in RENAMED:
            command = re.sub(before, now, command)
        yield file.stem, command
