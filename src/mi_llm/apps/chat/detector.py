"""A small learned detector beside the guard's lists: linear over sequences and pairs of characters and words.

It reads a file of coefficients (`detector_messages.csv`, `detector_replies.csv`, made by `training.py` from the sentences in
`sentences/`) and writes nothing. A text is split into clauses; windows of `WINDOW` clauses are scored, and the highest score of a
label counts, so a sentence is found in a long message. All of it is arithmetic on the text: the same text gets the same score
everywhere, in milliseconds.
"""

import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from mi_llm import storage

ANY = "any"  # the label of a text that has one of the others
WINDOW = 12  # clauses that are scored together
LENGTH = 3  # longest sequences of characters and of words that have a coefficient
APART = 4  # how far apart two characters or words can be that have one as a pair
HAN = re.compile("[\u3400-\u9fff]+")
PIECES = re.compile("[\u3400-\u9fff]+|[a-z0-9]+")
BREAKS = re.compile(r"[,，、。.!?！？;；:：\n…~]+")
ENDINGS = re.compile(r"(?<=[a-z]{3})(?:ing|ed|es|s)$")


def features(clause: str) -> frozenset[str]:
    """The features of a clause of folded text: sequences of characters or words, and pairs of them with a gap between."""
    found: set[str] = set()
    words: list[str] = []
    for piece in PIECES.findall(clause):
        if HAN.match(piece):
            found.update(sequences(f"^{piece}$", ""), pairs(piece))
            words.append("#")  # a stretch of Chinese between English words
        else:
            words.append(ENDINGS.sub("", piece))
    return frozenset(found.union(sequences(words, " "), pairs(words)) - {"#"})


def sequences(parts: Sequence[str], between: str) -> Iterator[str]:
    """Every run of up to `LENGTH` parts."""
    for size in range(1, LENGTH + 1):
        yield from (between.join(parts[at : at + size]) for at in range(len(parts) - size + 1))


def pairs(parts: Sequence[str]) -> Iterator[str]:
    """Every two parts with one to three others between them."""
    for gap in range(2, APART + 1):
        yield from (f"{first}_{then}" for first, then in zip(parts, parts[gap:], strict=False))


def windows(text: str) -> Iterator[frozenset[str]]:
    """The features of each window of a folded text."""
    parts = [found for part in BREAKS.split(text) if (found := features(part))]
    for end in range(min(WINDOW, len(parts)), len(parts) + 1):
        yield frozenset().union(*parts[max(0, end - WINDOW) : end])


@dataclass(frozen=True)
class Detector:
    """Coefficients by feature, one for each label."""

    labels: tuple[str, ...]
    bias: tuple[float, ...]
    coefficients: dict[str, tuple[float, ...]]

    def scores(self, text: str) -> dict[str, float]:
        """The highest probability of each label in any window of a folded text."""
        best = [0.0] * len(self.labels)
        for window in windows(text):
            known = [self.coefficients[feature] for feature in sorted(window & self.coefficients.keys())]
            size = math.sqrt(len(window) or 1)
            sums = (
                [bias + sum(column) / size for bias, column in zip(self.bias, zip(*known, strict=True), strict=True)]
                if known
                else self.bias
            )
            best = [max(old, 1 / (1 + math.exp(-max(-30.0, new)))) for old, new in zip(best, sums, strict=True)]
        return dict(zip(self.labels, best, strict=True))


@cache
def bundled(name: str) -> Detector:
    """The bundle's coefficients for `messages` or `replies`."""
    lines = storage.read_text(resources.files(__package__) / f"detector_{name}.csv").splitlines()
    header, bias, *rows = csv.reader(lines)
    coefficients = {row[0]: tuple(float(value or 0) for value in row[1:]) for row in rows}
    return Detector(tuple(header[1:]), tuple(map(float, bias[1:])), coefficients)
