import dataclasses

import pytest

from revformers.planning.advice import advise
from revformers.planning.choose import candidates, choose
from revformers.planning.devices import DEVICES, Machine
from tests.planning.rows import GIB, row


def advice(rows, refusal=None, host=None, pretrained=False, tiled=None, fixed=GIB):
    rows = candidates(rows, pretrained=pretrained)
    chosen = choose(rows, host_is_known=host is not None)
    return advise(rows, chosen, fixed, Machine(DEVICES["h100"], 2 * GIB, host), refusal, tiled)


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ("full", "do not fit: train an adapter (lora or qlora), choose"),
        ("lora", "do not fit: train the adapter on NF4 weights (qlora), choose"),
        ("qlora", "do not fit: choose an optimizer"),
    ],
)
def test_what_is_done_already_is_not_advised(training, expected):
    assert expected in advise([], None, 3 * GIB, Machine(DEVICES["h100"], 2 * GIB), None, training=training)


CHECKPOINT = row("checkpoint", 4, time=1.2, activations=100)
REBUILT = row("rebuild", 6, 9999, 1.32, 0)


@pytest.mark.parametrize(
    ("rows", "refusal", "expected"),
    [
        (
            [row("store", 1), CHECKPOINT, row("rebuild", 9, bits=0)],
            None,
            "Store activations: this fits up to 1 sequence,",
        ),
        ([row("store", 0), row("checkpoint", 0)], None, "No way to train fits"),
        (
            [row("store", 0), CHECKPOINT, REBUILT],
            None,
            "Rebuild with 0 bits: this fits up to 6 sequences or 9,999 tokens, where checkpointing fits 4 sequences or "
            "4,096 tokens. A step on one sequence is predicted to take 1.10 times as long as with checkpointing.",
        ),
        (
            [row("store", 0), CHECKPOINT, row("rebuild", 4, time=1.25, bits=0, states=200)],
            None,
            "fits up to 4 sequences or 4,096 tokens: two states and side information take no less than its",
        ),
        (
            [row("store", 0), CHECKPOINT, row("rebuild", 5, 4200, time=1.8, bits=0, states=50)],
            None,
            "rebuilding with 0 bits fits up to 5 sequences or 4,200 tokens, at 1.50 times the time of checkpointing,",
        ),
        ([row("store", 0), CHECKPOINT], "Its layers differ.", "the model cannot be reversed (Its layers differ)."),
        (
            [CHECKPOINT, REBUILT, row("budget", 4, time=1.08, bits=0)],
            None,
            "With a Budget that spends the rest of the memory, 4 sequences take 0.90 times as long as with",
        ),
        ([row("checkpoint", 0, context=512), row("rebuild", 1, bits=2)], None, "Rebuild with 2 bits"),
    ],
)
def test_the_sentence_says_what_and_why(rows, refusal, expected):
    assert expected in advice(rows, refusal)


def test_weights_that_do_not_fit():
    assert "alone do not fit" in advice([row("store", 9)], fixed=3 * GIB)


OFFLOADED = row("offload", 7, 10_240, 1.25)
SERIAL = row("serial offload", 7, 10_240, 1.4)


def test_offloading_is_advised_where_the_host_is_known_and_mentioned_where_it_is_not():
    rows = [CHECKPOINT, SERIAL, OFFLOADED, REBUILT]
    known, unknown = advice(rows, host=100 * GIB), advice(rows)
    assert known.startswith(
        "Offload the inputs of layers with Offload(), which copies while layers compute: this fits up to 7 "
        "sequences or 10,240 tokens with 3 GiB of the host"
    )
    assert "predicted to take 1.04 times as long" in known
    assert (
        "Where the host's memory or link is shared, rebuild with 0 bits instead, which fits up to 6 sequences" in known
    )
    assert unknown.startswith("Rebuild with 0 bits")
    assert "If the host has 3 GiB for it (--host_memory), offload the inputs of layers" in unknown


def test_offloading_trains_the_ordinary_network_so_rebuilding_has_to_be_worth_more():
    as_good = row("rebuild", 7, 10_240, 1.25, 0)
    assert advice([CHECKPOINT, OFFLOADED, as_good], host=100 * GIB).startswith("Offload")
    better = row("rebuild", 8, 12_288, 1.25, 0)
    assert advice([CHECKPOINT, OFFLOADED, better], host=100 * GIB).startswith("Rebuild")


def test_context_and_time_count_as_well_as_sequences():
    """For LoRA at 131,072 tokens one sequence fits either way; offloading fits a longer one in the same time."""
    rows = [
        row("checkpoint", 0, 103_936, 1.32),
        row("serial offload", 1, 168_192, 1.341),
        row("rebuild", 1, 136_960, 1.342, 2),
    ]
    assert advice(rows, host=100 * GIB, pretrained=True).startswith("Offload the checkpoints with transformers")
    unknown = advice(rows, pretrained=True)
    assert unknown.startswith("Rebuild with 2 bits")
    assert "this fits up to 1 sequence or 168,192 tokens" in unknown
    slow = [*rows[:1], row("serial offload", 1, 168_192, 2.0), rows[2]]
    known = advice(slow, host=100 * GIB, pretrained=True)
    assert known.startswith("Rebuild with 2 bits")
    assert "Offloading fits up to 1 sequence or 168,192 tokens, at 1.52 times the time of checkpointing." in known


def test_a_host_that_limits_is_named():
    small = row("offload", 2, 2048, 1.25, limited=True)
    assert (
        "The memory of the host limits offloading to 2 sequences or 2,048 tokens; one sequence takes 1 GiB"
        in advice([CHECKPOINT, REBUILT, small], host=2 * GIB)
    )
    none = advice([CHECKPOINT, REBUILT, row("offload", 0, time=1.25, limited=True)], host=0)
    assert none.startswith("Rebuild")
    assert "The memory of the host is too small to offload; one sequence takes 1 GiB there." in none
    only = [row("checkpoint", 0), row("offload", 2, limited=True)]
    assert "The memory of the host is what limits this." in advice(only, host=2 * GIB)
    assert "takes 1 GiB of the host" in advice([row("checkpoint", 0), row("offload", 0, limited=True)], host=0)


def test_what_fits_alone_is_advised_even_if_the_host_is_unknown():
    assert advice([row("checkpoint", 0), OFFLOADED]).startswith("Offload the inputs")


def in_tiles(one, tokens):
    return dataclasses.replace(one, setup=dataclasses.replace(one.setup, mlp_tile=tokens))


def test_tiles_that_make_a_row_fit_are_named():
    assert advice([in_tiles(CHECKPOINT, 8192)]).startswith(
        "Use checkpointing in MLP tiles of 8,192 tokens, which fits up to 4 sequences"
    )
    better = row("rebuild", 9, bits=2, time=1.3)
    assert "where checkpointing in MLP tiles of 8,192 tokens fits 4" in advice([in_tiles(CHECKPOINT, 8192), better])
    assert "where checkpointing fits 4" in advice([in_tiles(one, 8192) for one in (CHECKPOINT, better)])


def test_tiles_that_make_a_context_longer_are_those_of_the_recommended_row():
    longer = "With MLP tiles of 4,096 tokens, {} fits 40,000 tokens, for one more evaluation of the MLPs."
    assert longer.format("checkpointing") in advice([CHECKPOINT], tiled=(4096, 40_000))
    assert longer.format("rebuilding with 0 bits") in advice([CHECKPOINT, REBUILT], tiled=(4096, 40_000))
    assert longer.format("offloading") in advice([CHECKPOINT, OFFLOADED, REBUILT], host=100 * GIB, tiled=(4096, 40_000))
    assert "tiles" not in advice([CHECKPOINT], tiled=(4096, 4200))


SCRATCH, NEAR = row("rebuild", 9, time=1.3, bits=0), row("rebuild", 6, time=1.4, bits=2)


@pytest.mark.parametrize(
    ("rows", "pretrained", "expected"),
    [
        ([SCRATCH, NEAR], True, "Rebuild with 2 bits: this fits up to 6 sequences"),
        (
            [SCRATCH, row("rebuild", 4, bits=2, time=1.3, states=50)],
            True,
            "Use checkpointing, which fits up to 4 sequences",
        ),
        ([SCRATCH], True, "a pretrained model becomes another network when it is rebuilt with fewer than 2 bits"),
        (
            [SCRATCH, NEAR],
            False,
            "from scratch. A pretrained model needs 2 bits or more; rebuilding with 2 bits fits up to 6 seq",
        ),
        ([SCRATCH], False, "This is for training from scratch: a pretrained model needs 2 bits or more."),
    ],
)
def test_a_pretrained_model_is_not_made_another_network(rows, pretrained, expected):
    sentence = advice([CHECKPOINT, *rows], pretrained=pretrained)
    assert expected in sentence
    assert sentence.startswith("Rebuild with 0 bits") != pretrained


def test_a_network_near_the_pretrained_one_needs_no_word_about_it():
    assert "pretrained" not in advice([CHECKPOINT, NEAR])
    assert "No way to train fits" in advice([row("checkpoint", 0), SCRATCH], pretrained=True)
