"""A small learned detector beside the guard's lists: linear over characters, words and concepts.

It reads a file of coefficients (`detector_messages.csv`, `detector_replies.csv`, made by `training.py` from the sentences in
`sentences/`) and `concepts.yaml`, and writes nothing. A text is split into clauses; windows of `WINDOW` clauses are scored,
and the highest score of a label counts, so a sentence is found in a long message. All of it is arithmetic on the text: the same
text gets the same score everywhere, in a few milliseconds.
"""

import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from mi_llm import storage

WINDOW = 3  # clauses that are scored together
GRAMS, WORDS = 4, 3  # longest sequences of characters and of words that have a coefficient
NEAR = 4  # concepts after one that make a pair with it
HAN = re.compile("[\u3400-\u9fff]+")
PIECES = re.compile("[\u3400-\u9fff]+|[a-z0-9]+")
BREAKS = re.compile(r"[,，、。.!?！？;；:：\n…~]+")
ENDINGS = re.compile(r"(?<=[a-z]{3})(?:ing|ed|es|s)$")


@dataclass(frozen=True)
class Clause:
    """What a clause holds: its character and word sequences, and its concepts in order."""

    grams: frozenset[str]
    concepts: tuple[str, ...]


@cache
def concepts() -> dict[str, str]:
    """The concept of each phrase: Chinese as it is written, English as words with one space between."""
    content = storage.read_yaml(resources.files(__package__) / "concepts.yaml")
    known: dict[str, str] = {}
    for concept, line in content.items():
        chinese, _, english = line.partition("|")
        for phrase in (*chinese.split(), *(part.strip() for part in english.split(","))):
            known.setdefault(phrase, concept)
    return known


@cache
def longest() -> tuple[int, int]:
    """The longest phrase of `concepts`, in characters (Chinese) and words (English)."""
    phrases = list(concepts())
    return (
        max(len(phrase) for phrase in phrases if HAN.match(phrase)),
        max(len(phrase.split()) for phrase in phrases if not HAN.match(phrase)),
    )


def clauses(text: str) -> list[Clause]:
    """The clauses of a folded text: simplified, lower case, without apostrophes."""
    return [clause for part in BREAKS.split(text) if (clause := read(part)).grams]


def read(part: str) -> Clause:
    """One clause."""
    pieces = PIECES.findall(part)
    grams: set[str] = set()
    words: list[str] = []
    for piece in pieces:
        if HAN.match(piece):
            edged = f"^{piece}$"
            grams.update(edged[at : at + size] for size in range(1, GRAMS + 1) for at in range(len(edged) - size + 1))
        else:
            words.append(ENDINGS.sub("", piece))
    grams.update(" ".join(words[at : at + size]) for size in range(1, WORDS + 1) for at in range(len(words) - size + 1))
    return Clause(frozenset(grams), tuple(named(pieces)))


def named(pieces: Sequence[str]) -> Iterator[str]:
    """The concepts in a clause: the longest phrase at each place."""
    known, (characters, words) = concepts(), longest()
    at = 0
    while at < len(pieces):
        piece = pieces[at]
        if HAN.match(piece):
            here = 0
            while here < len(piece):
                size = next((size for size in range(characters, 0, -1) if piece[here : here + size] in known), 0)
                if size:
                    yield known[piece[here : here + size]]
                here += size or 1
            at += 1
            continue
        size = next((size for size in range(words, 0, -1) if " ".join(pieces[at : at + size]) in known), 0)
        if size:
            yield known[" ".join(pieces[at : at + size])]
        at += size or 1


def features(window: Sequence[Clause]) -> dict[str, float]:
    """The features of a window: sequences, and concepts alone and in pairs, each group with the length 1."""
    grams = set().union(*(clause.grams for clause in window))
    order = [concept for clause in window for concept in clause.concepts]
    pairs = {f"{{{first}}}" for first in order}
    pairs |= {f"{{{first}>{then}}}" for at, first in enumerate(order) for then in order[at + 1 : at + 1 + NEAR]}
    found = dict.fromkeys(grams, 1 / math.sqrt(len(grams) or 1))
    found.update(dict.fromkeys(pairs, 1 / math.sqrt(len(pairs) or 1)))
    return found


def windows(text: str) -> Iterator[dict[str, float]]:
    """The features of each window of a folded text."""
    parts = clauses(text)
    for end in range(min(WINDOW, len(parts)), len(parts) + 1):
        yield features(parts[max(0, end - WINDOW) : end])


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
            sums = list(self.bias)
            for feature, value in window.items():
                for at, coefficient in enumerate(self.coefficients.get(feature, ())):
                    sums[at] += value * coefficient
            best = [max(old, 1 / (1 + math.exp(-max(-30.0, new)))) for old, new in zip(best, sums, strict=True)]
        return dict(zip(self.labels, best, strict=True))


@cache
def bundled(name: str) -> Detector:
    """The bundle's coefficients for `messages` or `replies`."""
    lines = storage.read_text(resources.files(__package__) / f"detector_{name}.csv").splitlines()
    header, bias, *rows = csv.reader(lines)
    coefficients = {row[0]: tuple(float(value or 0) for value in row[1:]) for row in rows}
    return Detector(tuple(header[1:]), tuple(map(float, bias[1:])), coefficients)
