"""Tables of docs/science/reproduction.md: figures of the paper and of others beside ours, and commands of results.

What others report is in lab/docs/paper.json, with where it was read. Ours come from committed results. What the
commands of the results read is in lab/docs/inputs.json.
"""

import json
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

from lab import REPOSITORY
from lab.docs.markdown import RESULTS, mebibytes, result, show
from lab.docs.pretraining import compared_with_ordinary
from lab.docs.tables import ARMS, peaks_by_depth
from revformers.byte_size import parse_size

PAPER: dict[str, Any] = json.loads((REPOSITORY / "lab/docs/paper.json").read_text(encoding="utf-8"))
INPUTS: list[dict[str, Any]] = json.loads((REPOSITORY / "lab/docs/inputs.json").read_text(encoding="utf-8"))["inputs"]
HEADS = ("chunked", "own")
DYNAMICS = {
    "residual": "ordinary",
    "midpoint": "midpoint",
    "other_midpoint": "midpoint",  # a step that keeps the residual; the page says which
    "blended_midpoint": "blended",
    "leapfrog": "leapfrog",
    "hamiltonian": "Hamiltonian",
}
"""What the networks of others are called on the page."""

RENAMED = (
    (r"^python benchmarks/(\w+)\.py", r"python -m lab.studies.\1"),
    (r"^revformers (bench|evaluate|compare|report)\b", r"python -m lab \1"),
    (r"(?<= )(?:lab|benchmarks)/results/", ""),
    (r" --overwrite\b", ""),
    (r"\bSmolLM2-135M-Instruct-Q4_1\b", "SmolLM2-135M-Instruct"),
    (r"\bconverted4\b", "converted-4"),
    (r"(?<= )'0 bits, update, seed 0'", "'kept/0 bits, update, seed 0'"),
    (r"--out cmp$", "--out quickstart-comparison"),
)
"""What commands, and the files that they name, were called when some results were measured, and are called now."""

OUTPUTS = ("--out", "--output", "--keep", "--plot")
"""Options whose word is written, not read."""

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
        planned = (case["largest_batch"][way][row["memory"]] for case in _planned(3) for way in ARMS)
        rows.append((f"{row['memory']} ({row['gpus']})", row["stored"], row["midpoint"], *planned))
    show(
        "memory | paper: stored | paper: midpoint | chunked head: store | checkpoint | rebuild "
        "| own head: store | checkpoint | rebuild",
        rows,
    )


def table_3_lines() -> None:
    """Print the line through the paper's batches against the memory, and its slopes from card to card, by column."""
    rows = PAPER["table_3"]["rows"]
    memory = [parse_size(row["memory"]) / 1e9 for row in rows]
    for column in ("stored", "midpoint"):
        batches = [row[column] for row in rows]
        slope, rest = linear_regression(batches, memory)
        slopes = [
            (more - less) / (many - few) for (less, few), (more, many) in pairwise(zip(memory, batches, strict=True))
        ]
        print(
            f"{column.capitalize()}: {slope:.2f} GB a sequence ({min(slopes):.2f} to {max(slopes):.2f} from one card "
            f"to the next), and {rest:.1f} GB beside the sequences."
        )
    case = _planned(3)[0]
    logits = 4 * case["length"] * case["vocabulary"] / 1e9
    print(f"The logits of {case['length']:,} tokens over {case['vocabulary']:,} words: {logits:.2f} GB in float32.")


def table_4() -> None:
    """Print the paper's Table 4, and the largest batch and the time of a step that the planner finds."""
    planned = {(case["layers"], case["head"]): case for case in _planned(4)}
    rows = []
    for row in PAPER["table_4"]["rows"]:
        batches = [
            next(iter(planned[row["layers"], head]["largest_batch"][way].values())) for head in HEADS for way in ARMS
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
    """Print the largest batches of Table 4 in miniature, and the sequences per second there over those of storing.

    A speed is the median of the rounds, with the lowest and the highest of them.
    """
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
            ratios = [gain * stored / own for stored, own in rounds]
            speeds.append(f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        rows.append((layers, *batches, *speeds[1:]))
    show("layers | store | checkpoint | rebuild | speed of checkpointing over storing | of rebuilding", rows)


def _planned(table: int) -> list[dict[str, Any]]:
    """Return the planned cases of a table."""
    return [row for row in result("paper-tables")["rows"] if row["table"] == table]


def indexed() -> None:
    """Print the figures of the paper that an index of papers lists."""
    show("measure | figure", PAPER["indexed"]["rows"])


def _who(one: dict[str, Any]) -> str:
    """Return the owner of a public reproduction."""
    return str(one["repository"]).partition("/")[0]


def _link(one: dict[str, Any]) -> str:
    """Return a link to the file of a public reproduction that its figures were read in."""
    return f"[{_who(one)}](https://github.com/{one['repository']}/blob/{one['commit']}/{one['path']})"


def _differences() -> Iterator[tuple[str, list[float]]]:
    """Yield a dynamics in words, and its losses over those of the ordinary network in the public reproductions."""
    for name in ("midpoint", "leapfrog", "hamiltonian"):
        losses = [one["loss"] for one in PAPER["reproductions"] if name in one["loss"]]
        yield DYNAMICS[name], [loss[name] - loss["residual"] for loss in losses]


def public_reproductions() -> None:
    """Print the set-ups of public reproductions, and their losses at one batch."""
    columns = list(dict.fromkeys(DYNAMICS.values()))
    rows = []
    for one in PAPER["reproductions"]:
        losses = {
            DYNAMICS[name]: f"{loss:.3f}{' *' * (name == 'other_midpoint')}" for name, loss in one["loss"].items()
        }
        setup = f"{one['data']}, {one['device']}", one["layers"], one["step_size"], one["start"]
        rows.append((_link(one), *setup, *(losses.get(name, "") for name in columns)))
    show(f"who | data, device | layers | h | start | {' | '.join(columns)}", rows)


def compared_losses() -> None:
    """Print how often each dynamics had a lower loss than the ordinary network in the public reproductions."""
    counts = (f"{name} in {sum(one < 0 for one in found)} of {len(found)}" for name, found in _differences())
    print(f"The loss was lower than that of the ordinary network with {', '.join(counts)}.")
    for one in PAPER["reproductions"]:
        if again := one.get("loss_of_another_seed"):
            both = (f"{one['loss'][name]:.3f} and {loss:.3f} ({DYNAMICS[name]})" for name, loss in again.items())
            print(f"With two seeds, {_who(one)} found {', '.join(both)}.")


def differences_of_others(study: str) -> None:
    """Print how far public reproductions are from their ordinary networks, and how many farther than a seed moves it.

    A seed moves it by twice the standard deviation of a difference in a study of pretraining.
    """
    comparison = compared_with_ordinary(result(f"pretraining-{study}"))
    assert comparison is not None
    limit = 2 * comparison.deviation
    for name, found in _differences():
        beyond = sum(abs(difference) > limit for difference in found)
        print(
            f"* {name}: {min(found):+.3f} to {max(found):+.3f}, in {len(found)} of them; "
            f"beyond ±{limit:.3f} in {beyond}."
        )


def along_training() -> None:
    """Print how the order of dynamics changed in the course of public reproductions, a line for each."""
    for one in PAPER["reproductions"]:
        if change := one.get("along_training"):
            print(f"* {_link(one)}: {change}.")


def floating_point_reversal() -> None:
    """Print what public reproductions report of reversal in floating point."""
    rows = []
    for one in PAPER["reproductions"]:
        if found := one.get("floating_point_reversal"):
            loss = found.get("loss")
            losses = f"{loss['inverse']} and {loss['reference']} ({DYNAMICS[loss['network']]})" if loss else ""
            rows.append((_link(one), found["conditions"], found["states"], found["gradients"], losses))
    show("who | conditions | error of rebuilt states over their size | gradients | losses, inverse and reference", rows)


def larger_batches() -> None:
    """Print what public reproductions report of a larger batch: losses, and speeds over the ordinary network's."""
    rows = []
    for one in PAPER["reproductions"]:
        larger = one["larger_batch"]
        speed, before_and_after = larger["tokens_per_second"], larger["loss"]
        shares = (f"{speed[size] / speed['residual']:.2f}" for size in ("small", "large"))
        batches = (" to ".join(f"{size:,}" for size in sizes) for sizes in (one["largest_batch"], larger["batch"]))
        losses = " to ".join(f"{loss:.3f}" for loss in before_and_after)
        rows.append((_link(one), DYNAMICS[larger["network"]], *batches, *shares, losses))
    show(
        "who | network | largest batch, ordinary to reversible | trained at | speed at the smaller batch "
        "| at the larger one | loss",
        rows,
    )


def checkpointing_of_others() -> None:
    """Print what public reproductions report of checkpointing."""
    for one in PAPER["reproductions"]:
        if other := one.get("checkpointing"):
            speed = one["larger_batch"]["tokens_per_second"]
            few, many = one["largest_batch"]
            print(
                f"{_who(one)} also trained the ordinary network with checkpointing: at most "
                f"{other['largest_batch']} sequences, between {few} stored and {many} reversible, and "
                f"{other['tokens_per_second']:,} tokens per second at {other['batch']}, between "
                f"{speed['small']:,} reversible and {speed['residual']:,} stored."
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


def availability(one: dict[str, Any], name: str) -> str:
    """Return whether an outsider has an input, by its name: as `lab/docs/inputs.json` says it."""
    available = one["availability"]
    return available if isinstance(available, str) else available[name]


def inputs() -> None:
    """Print what the commands read, where it is from, how to get or make it, and whether it is public."""
    rows = []
    for one in INPUTS:
        names = one["names"]
        origin = f"[{one['what']}]({one['origin']})" if "origin" in one else one["what"]
        available = list(dict.fromkeys(availability(one, name) for name in names))
        words = (
            available[0] if len(available) == 1 else ", ".join(f"{availability(one, name)} ({name})" for name in names)
        )
        rows.append((", ".join(f"`{name}`" for name in names), origin, one["making"], words))
    show("name | what it is, and its licence | how to get or make it | public", rows)


def digests() -> None:
    """Print the sha256 of the input files that one can compare."""
    lines = [f"{digest}  {name}" for one in INPUTS for name, digest in one.get("sha256", {}).items()]
    print("\n".join(["", "```text", *lines, "```", ""]))


def read_by(command: str) -> list[str]:
    """Return the names of the inputs that a command reads, in its order."""
    names = {name for one in INPUTS for name in one["names"]}
    words = shlex.split(command)
    given = (Path(word).parts[:1] for before, word in pairwise(words) if before not in OUTPUTS)
    return list(dict.fromkeys(part for parts in given for part in parts if part in names))


def irreproducible() -> None:
    """Print which results an outsider cannot measure anew, because an input is not public or only one alike is."""
    kinds = {name: availability(one, name) for one in INPUTS for name in one["names"]}
    for kind, words in (
        ("not public", "These read a model that is not public, so that an outsider gets figures of another model"),
        ("alike", "These read a text or a model of which an outsider gets one alike, so that figures differ a little"),
    ):
        found = [
            name
            for name, command in commands_of_results()
            if kind in (read := {kinds[one] for one in read_by(command)})
            and (kind != "alike" or "not public" not in read)
        ]
        print(f"\n{words}: {', '.join(f'`{name}`' for name in found)}.")


def commands() -> None:
    """Print today's command of every committed result, and what it reads."""
    show(
        "result | reads | command",
        (
            (f"`{name}.json`", ", ".join(f"`{one}`" for one in read_by(command)), f"`{command}`")
            for name, command in commands_of_results()
        ),
    )


def commands_of_results() -> Iterator[tuple[str, str]]:
    """Yield the name of every committed result and the command that measures it anew today."""
    for file in sorted(RESULTS.glob("*.json")):
        command = REPLACED.get(file.stem) or result(file.stem)["command"]
        for before, now in RENAMED:
            command = re.sub(before, now, command)
        yield file.stem, command
