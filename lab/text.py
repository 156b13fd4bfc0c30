"""Text of twelve words, for runs of seconds."""

import random

WORDS = ("the", "a", "model", "layer", "state", "step", "gradient", "learns", "reads", "writes", "forgets", "never")


def sentences(number: int, chance: random.Random | None = None) -> list[str]:
    """Return sentences of eight words, each in a line of its own.

    Args:
        number: of the sentences.
        chance: draws the words; by default the sentences are the same each time.

    """
    chance = chance or random.Random(0)
    return [" ".join(chance.choices(WORDS, k=8)) + ".\n" for _ in range(number)]
