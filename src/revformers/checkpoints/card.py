"""The model card of a reversible model: the README.md that `save_pretrained` and `push_to_hub` write."""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from revformers.models.forward import ReversibleStack
from revformers.models.parts import predictor_weights, require_reversible, update_predictors
from revformers.models.provenance import Provenance, hub_id

CARD_NAME = "README.md"
MARKER = "<!-- revformers writes this file anew with every save; remove this line to keep your own text. -->"
SECTION = "<!-- revformers writes all that follows anew with every save. -->"

TEMPLATE = """\
---
{{ card_data }}
---

{{ marker }}

{{ text }}
"""


def model_card(model: PreTrainedModel, tags: Sequence[str] = ()) -> ModelCard:
    """Return the model card of a reversible model, including metadata for the hub.

    Args:
        model: a reversible model.
        tags: tags to add to the model's own in the metadata.

    """
    reversible = require_reversible(model)
    provenance = reversible.provenance or Provenance()
    data = ModelCardData(
        library_name="revformers",
        pipeline_tag=_task(model),
        base_model=provenance.base_model or hub_id(model.config.name_or_path or ""),
        tags=sorted({"revformers", "reversible", *(model.model_tags or []), *tags}),
    )
    sections = [
        _introduction(model),
        _dynamics(model, reversible),
        _measurements(provenance),
        _made_by(provenance),
        _versions(),
    ]
    text = "\n\n".join(section for section in sections if section)
    card: ModelCard = ModelCard.from_template(data, template_str=TEMPLATE, marker=MARKER, text=text)
    return card


def add_section(path: Path, model: PreTrainedModel, adapter: bool = False) -> None:
    """Describe the network at the end of a card that a trainer or PEFT wrote, replacing an earlier description.

    Args:
        path: the card.
        model: a reversible model.
        adapter: whether the card belongs to an adapter of the model.

    """
    card = ModelCard.load(path, ignore_metadata_errors=True)
    reversible = require_reversible(model)
    sections = [
        _introduction(model, adapter).replace("# ", "## ", 1),
        _dynamics(model, reversible),
        _measurements(reversible.provenance or Provenance()),
    ]
    card.text = (
        card.text.split(SECTION)[0].rstrip()
        + "\n\n"
        + "\n\n".join([SECTION, *(section for section in sections if section)])
        + "\n"
    )
    card.data.tags = sorted({*(card.data.tags or []), "revformers", "reversible"})
    card.save(path)


def save_deployed_card(directory: Path, losses: Mapping[str, float], adapter: bool) -> None:
    """Write the card of an ordinary network, or of an adapter for one, that was trained with reversible dynamics.

    Args:
        directory: the directory of the saved network.
        losses: deployed_validation_loss and, if known, original_validation_loss, nats per token.
        adapter: whether it is an adapter.

    """
    kind, library = ("adapter", "peft") if adapter else ("model", "transformers")
    original = losses.get("original_validation_loss")
    before = "" if original is None else f", {original:.4f} before training"
    text = (
        f"# An ordinary {kind}, trained reversibly\n\n"
        f"This is an ordinary {kind} of {library}, which needs nothing of revformers. It was trained with reversible "
        f"dynamics, whose backward pass rebuilds activations instead of storing them, and then evaluated as it is "
        f"saved: validation loss {losses['deployed_validation_loss']:.4f}{before}.\n\n" + _versions()
    )
    data = ModelCardData(library_name=library, tags=["revformers"])
    ModelCard.from_template(data, template_str=TEMPLATE, marker=MARKER, text=text).save(directory / CARD_NAME)


def has_section(card: Path) -> bool:
    """Whether `card` is an existing README.md to which `add_section` has added."""
    return card.is_file() and SECTION in card.read_text(encoding="utf-8", errors="replace")


def is_ours(card: Path) -> bool:
    """Whether `card` is an existing README.md that revformers wrote, and may overwrite."""
    return card.is_file() and MARKER in card.read_text(encoding="utf-8", errors="replace")


def _task(model: PreTrainedModel) -> str | None:
    """Return the hub's name for the task of the model's head; None for a bare decoder."""
    from transformers.modelcard import TASK_MAPPING  # imported here, because it imports trainers

    name = type(model).__name__
    return next((task for task, models in TASK_MAPPING.items() if name in models.values()), None)


def _introduction(model: PreTrainedModel, adapter: bool = False) -> str:
    network, load, kind = "This", "from_pretrained", "model"
    if adapter:
        network, load, kind = "The base of this adapter", "load_adapter", "adapter"
    return f"""\
# {type(model).__name__} with its own recurrence

**{network} is not the ordinary network.** Its hidden states follow the recurrence below instead of
`p[l+1] = p[l] + f(p[l])`, and its weights are useful only with it. transformers alone refuses to load it.

    pip install revformers

To use it with the command line of another library, such as lm_eval, put `revformers run` before the command. In Python:

```python
import revformers

model = revformers.{load}("the directory or hub id of this {kind}")
```"""


def _dynamics(model: PreTrainedModel, reversible: ReversibleStack) -> str:
    dynamics, layers = reversible.dynamics, range(reversible.number_of_layers)
    lines = [
        "## Dynamics",
        "",
        f"    {dynamics.recurrence}",
        "",
        f"{type(dynamics).__name__}, one step per {dynamics.granularity}, {len(layers)} layers; "
        f"p[-1]: {dynamics.start}; readout: {dynamics.readout}.",
        f"States: {reversible.states.in_words}.",
    ]
    if dynamics.reversible:
        counts = Counter(
            (dynamics.coefficients(layer).previous, dynamics.side_information_bits(layer)) for layer in layers
        )
        mean = dynamics.mean_side_information_bits(len(layers))
        lines += [
            f"The backward pass keeps {mean:g} {'bit' if mean == 1 else 'bits'} of side information per element and "
            f"layer{', for each of its two steps,' if dynamics.granularity == 'branch' else ''} on average.",
            "",
            "| coefficient of p[l-1] | layers | side information, bits per element |",
            "|---|---|---|",
            *(f"| {previous} | {number} | {kept} |" for (previous, kept), number in sorted(counts.items())),
        ]
    predictors = update_predictors(model)
    parameters = sum(weight.numel() for weight in predictor_weights(model).values())
    kept = f"{len(predictors)}, {parameters:,} parameters together" if predictors else "none"
    return "\n".join([*lines, "", f"Update predictors: {kept}."])


def _measurements(provenance: Provenance) -> str:
    texts = {
        "calibration": (provenance.calibration_tokens, provenance.original_loss, provenance.loss),
        "held out": (provenance.held_out_tokens, provenance.held_out_original_loss, provenance.held_out_loss),
    }
    rows = [
        f"| {name} | {'not known' if tokens is None else format(tokens, ',')} | {original:.4f} | {loss:.4f} | "
        f"{loss / original - 1:+.2%} |"
        for name, (tokens, original, loss) in texts.items()
        if original is not None and loss is not None
    ]
    if not rows:
        return ""
    source = f" Text: {provenance.source}." if provenance.source else ""
    return "\n".join(
        [
            "## Measured at conversion",
            "",
            f"Before any further training. Losses are mean cross-entropies, nats a token.{source}",
            "",
            "| text | tokens | original network | this network | change |",
            "|---|---|---|---|---|",
            *rows,
            *(["", *(f"* {remark}" for remark in provenance.remarks)] if provenance.remarks else []),
        ]
    )


def _made_by(provenance: Provenance) -> str:
    return f"## Made by\n\n```\n{provenance.made_by}\n```" if provenance.made_by else ""


def _versions() -> str:
    packages = ("revformers", "transformers", "torch")
    return "## Versions\n\n" + ", ".join(f"{name} {version(name)}" for name in packages) + "."
