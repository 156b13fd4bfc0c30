import pytest

from revformers.conversion.allocation import USUAL_BITS
from revformers.planning.cost import SetupCost
from revformers.planning.recommend import NEAR_BITS, recommend
from revformers.planning.setups import budgeted, rebuild
from revformers.planning.timeline import MemoryByCategory
from revformers.setup import CHECKPOINT as CHECKPOINTING
from revformers.setup import OFFLOAD, STORE

GIB = 2**30


def row(name, batch, context=0, time=1.0, bits=None, **memory):
    context = context or 1024 * batch
    setup = {"store": STORE, "checkpoint": CHECKPOINTING, "offload": OFFLOAD, "budget": budgeted(GIB)}.get(name)
    return SetupCost(
        setup or rebuild(bits),
        MemoryByCategory(**memory),
        GIB * (name == "offload"),
        batch,
        3 * GIB,
        context,
        time,
        time,
    )


CHECKPOINT = row("checkpoint", 4, time=1.2, activations=100)


@pytest.mark.parametrize(
    ("rows", "refusal", "expected"),
    [
        ([row("store", 1), CHECKPOINT], None, "Store activations: up to 1 sequence fit"),
        ([row("store", 0), row("checkpoint", 0)], None, "No way to train fits"),
        (
            [row("store", 0), CHECKPOINT, row("rebuild", 6, 9999, 1.32, 0)],
            None,
            "Rebuild with 0 bits: up to 6 sequences or 9,999 tokens fit, where checkpointing fits 4 sequences or 4,096 "
            "tokens. A step on one sequence is predicted to take 1.10 times as long as with checkpointing.",
        ),
        (
            [row("store", 0), CHECKPOINT, row("rebuild", 4, bits=0, states=200)],
            None,
            "Use checkpointing, up to 4 sequences: two 64-bit states and side information take no less",
        ),
        (
            [row("store", 0), CHECKPOINT, row("rebuild", 4, bits=0, states=50)],
            None,
            "Use checkpointing, up to 4 sequences: rebuilding fits hardly more",
        ),
        ([row("store", 0), CHECKPOINT], "Its layers differ.", "the model cannot be reversed (Its layers differ.)"),
        ([row("checkpoint", 0), row("offload", 2)], None, "2 sequences need 3.0 GiB of the host"),
        (
            [CHECKPOINT, row("rebuild", 6, 9999, 1.32, 0), row("offload", 7)],
            None,
            "2 bits or more. Offloaded checkpoints fit 7 sequences, with 3.0 GiB of the host",
        ),
        (
            [CHECKPOINT, row("rebuild", 6, 9999, 1.32, 0), row("budget", 4, time=1.08, bits=0)],
            None,
            "With a Budget that spends the rest of the memory, 4 sequences take 0.90 times as long as with",
        ),
        ([CHECKPOINT, row("offload", 5)], "Its layers differ.", "differ.). Offloaded checkpoints fit 5 sequences"),
        ([row("checkpoint", 0, context=512), row("rebuild", 1, bits=2)], None, "Rebuild with 2 bits"),
    ],
)
def test_the_sentence_says_what_and_why(rows, refusal, expected):
    assert expected in recommend(rows, GIB, 2 * GIB, refusal)


def test_weights_that_do_not_fit():
    assert "alone do not fit" in recommend([row("store", 9)], 2 * GIB, GIB, None)


SCRATCH, NEAR = row("rebuild", 9, time=1.3, bits=0), row("rebuild", 6, time=1.5, bits=2)


@pytest.mark.parametrize(
    ("rows", "pretrained", "expected"),
    [
        ([SCRATCH, NEAR], True, "Rebuild with 2 bits: up to 6 sequences or 6,144 tokens fit"),
        (
            [SCRATCH, row("rebuild", 4, bits=2, states=50)],
            True,
            "Use checkpointing, up to 4 sequences: rebuilding fits",
        ),
        ([SCRATCH], True, "a pretrained model becomes another network when it is rebuilt with fewer than 2 bits"),
        (
            [SCRATCH, NEAR],
            False,
            "from scratch. For a pretrained model, rebuild with 2 bits: up to 6 sequences or 6,144",
        ),
        ([SCRATCH], False, "This is for training from scratch: a pretrained model needs 2 bits or more."),
    ],
)
def test_a_pretrained_model_is_not_made_another_network(rows, pretrained, expected):
    sentence = recommend([CHECKPOINT, *rows], GIB, 2 * GIB, None, pretrained=pretrained)
    assert expected in sentence
    assert sentence.startswith("Rebuild with 0 bits") != pretrained


def test_near_is_what_a_conversion_gives_by_default():
    assert NEAR_BITS == USUAL_BITS  # planning and conversion do not import each other


def test_a_network_near_the_pretrained_one_needs_no_word_about_it():
    assert "pretrained" not in recommend([CHECKPOINT, NEAR], GIB, 2 * GIB, None)
    only_far = [row("checkpoint", 0), SCRATCH]
    assert "No way to train fits" in recommend(only_far, GIB, 2 * GIB, None, pretrained=True)
