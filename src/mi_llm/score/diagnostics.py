"""What a score does not show: the length of replies, repetition within and among them, empty replies."""

import statistics
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from mi_llm.language import language
from mi_llm.language.language import DEFAULT


def repeated_4grams(text: str) -> float:
    """The share of a text's 4-grams of characters that occur earlier in it (seq-rep-4, Welleck et al. 2020)."""
    grams = [text[start : start + 4] for start in range(len(text) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(sequences: Sequence[Sequence[object]]) -> float:
    """The number of different items over the number of items in all sequences (distinct-n, Li et al. 2016); 0 without any."""
    items = [item for sequence in sequences for item in sequence]
    return len(set(items)) / len(items) if items else 0.0


def diagnostics(replies: Sequence[str], code: str = DEFAULT) -> dict[str, float]:
    """Numbers of one arm's replies, to 4 decimals: characters (mean and sample SD), shares, distinct-1 and -2 of words.

    `repeated_4grams` is the mean over replies; `empty` the share without a visible character; `duplicate` the share that equals
    another reply of the same arm.
    """
    lengths = [len(reply) for reply in replies]
    times = Counter(replies)
    words = [[word for word in words if not word.isspace()] for words in map(language.load(code).cut, replies)]
    values = {
        "replies": len(replies),
        "characters_mean": statistics.fmean(lengths),
        "characters_sd": statistics.stdev(lengths) if len(lengths) > 1 else 0.0,
        "repeated_4grams": statistics.fmean(map(repeated_4grams, replies)),
        "empty": sum(not reply.strip() for reply in replies) / len(replies),
        "duplicate": sum(times[reply] > 1 for reply in replies) / len(replies),
        "distinct_1": distinct(words),
        "distinct_2": distinct([list(pairwise(sequence)) for sequence in words]),
    }
    return {name: round(value, 4) for name, value in values.items()}
