"""A small learned detector beside the guard's lists: linear over characters, words, and what they mean.

It reads `concepts.yaml`, which says what words stand for the same thing, and a file of coefficients (`detector_messages.csv`,
`detector_replies.csv`, made by `training.py` from the sentences in `sentences/`). It writes nothing. A text is split into
clauses; windows of `WINDOW` clauses are scored, and the highest score of a label counts, so a sentence is found in a long
message. All of it is arithmetic on the text: the same text gets the same score everywhere, in milliseconds.
"""

import csv
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from mi_llm import storage

ANY = "any"  # the label of a text that has one of the others
GRAVE = "plain"  # the label of a text with danger that is plain and not only possible
WINDOW = 12  # clauses that are scored together
SMALLEST = 20  # a window with fewer features is scored as if it had this many: few signs say little
SCALE = 10  # a coefficient is written in tenths
LENGTH = 3  # longest sequences of characters and of words that have a coefficient
LONGEST = 6  # characters or words of the longest word of `concepts.yaml`
APART = 4  # how far apart two characters or words can be that have one as a pair
HAN = re.compile("[\u3400-\u9fff]+")
PIECES = re.compile("[\u3400-\u9fff]+|[a-z0-9]+")
BREAKS = re.compile(r"[,，、。.!?！？;；:：\n…~]+")
ENDINGS = re.compile(r"(?<=[a-z]{3})(?:ing|ed|es|s)$")


@cache
def lexicon() -> dict[tuple[str, ...], str]:
    """The concept of each word of `concepts.yaml`: of a Chinese one by its characters, of an English one by its stems."""
    listed = storage.read_yaml(resources.files(__package__) / "concepts.yaml")
    words = [(tuple(word), concept) for concept, both in listed.items() for word in both["zh"].split()]
    words += [(tuple(map(stem, word.split())), concept) for concept, both in listed.items() for word in both["en"].split(", ")]
    return dict(words)


def stem(word: str) -> str:
    """An English word without its ending."""
    return ENDINGS.sub("", word)


def concepts(clause: str) -> list[str]:
    """The concepts in a clause of folded text, in order and in capitals; of words that overlap the first and longest counts."""
    known, names, at = lexicon(), list[str](), 0
    units = [unit for piece in PIECES.findall(clause) for unit in (piece if HAN.match(piece) else [stem(piece)])]
    while at < len(units):
        sizes = range(min(LONGEST, len(units) - at), 0, -1)
        size = next((size for size in sizes if tuple(units[at : at + size]) in known), 0)
        if size:
            names.append(known[tuple(units[at : at + size])].upper())
        at += size or 1
    return names


def features(clause: str) -> frozenset[str]:
    """The features of a clause of folded text: sequences of characters or words, and pairs of them with a gap between."""
    names: set[str] = set()
    words: list[str] = []
    for piece in PIECES.findall(clause):
        if HAN.match(piece):
            names.update(sequences(f"^{piece}$", ""), pairs(piece))
            words.append("#")  # a stretch of Chinese between English words
        else:
            words.append(stem(piece))
    return frozenset(names.union(sequences(words, " "), pairs(words)) - {"#"})


def parts(text: str, seen: dict[str, frozenset[str]] | None = None) -> list[frozenset[str]]:
    """The features of each clause of a folded text, with its concepts; `seen` keeps them for another reading of the text."""
    known = {} if seen is None else seen
    for clause in BREAKS.split(text):
        if clause not in known:
            known[clause] = own.union(concepts(clause)) if (own := features(clause)) else own
    return [known[clause] for clause in BREAKS.split(text) if known[clause]]


def sequences(parts: Sequence[str], between: str) -> Iterator[str]:
    """Every run of up to `LENGTH` parts."""
    for size in range(1, LENGTH + 1):
        yield from (between.join(parts[at : at + size]) for at in range(len(parts) - size + 1))


def pairs(parts: Sequence[str]) -> Iterator[str]:
    """Every two parts with one to three others between them."""
    for gap in range(2, APART + 1):
        yield from (f"{first}_{then}" for first, then in zip(parts, parts[gap:], strict=False))


def weight(features: int) -> float:
    """What a sum of coefficients is divided by, so that a long text does not count more for its length."""
    return math.sqrt(max(SMALLEST, features))


@dataclass(frozen=True)
class Detector:
    """Coefficients by feature, one for each label, in units of 1 / `SCALE`."""

    labels: tuple[str, ...]
    bias: tuple[int, ...]
    coefficients: dict[str, tuple[int, ...]]

    def scores(self, text: str, seen: dict[str, frozenset[str]] | None = None) -> dict[str, float]:
        """The highest probability of each label in any window of a folded text.

        Whole numbers are added as a clause enters the window and taken away as it leaves, so the order does not matter.
        """
        clauses = parts(text, seen)
        within = Counter[str]()
        sums = [0] * len(self.labels)
        best = list(self.bias) if not clauses else [-math.inf] * len(self.labels)
        for number, clause in enumerate(clauses, 1):
            for feature in clause:
                within[feature] += 1
                if within[feature] == 1 and (known := self.coefficients.get(feature)):
                    sums = [total + value for total, value in zip(sums, known, strict=True)]
            for feature in clauses[number - WINDOW - 1] if number > WINDOW else ():
                within[feature] -= 1
                if not within[feature]:
                    del within[feature]
                    if known := self.coefficients.get(feature):
                        sums = [total - value for total, value in zip(sums, known, strict=True)]
            if number >= min(WINDOW, len(clauses)):
                size = weight(len(within))
                best = [max(old, bias + total / size) for old, bias, total in zip(best, self.bias, sums, strict=True)]
        return {label: 1 / (1 + math.exp(-max(-30.0, top / SCALE))) for label, top in zip(self.labels, best, strict=True)}


@cache
def bundled(name: str) -> Detector:
    """The bundle's coefficients for `messages` or `replies`."""
    lines = storage.read_text(resources.files(__package__) / f"detector_{name}.csv").splitlines()
    header, bias, *rows = csv.reader(lines)
    coefficients = {row[0]: tuple(int(value or 0) for value in row[1:]) for row in rows}
    return Detector(tuple(header[1:]), tuple(map(int, bias[1:])), coefficients)
