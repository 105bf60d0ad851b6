"""How the guard's detectors are made: `mi-llm tool guard-train` fits the coefficients that `detector.py` reads.

Reads the sentences in `sentences/` (see docs/safety.md), writes `detector_messages.csv` and `detector_replies.csv`. A line
`{a|b} c` stands for several sentences. Sentences written one by one by several hands weigh most (`WEIGHTS`). Each label, and
whether there is any (`ANY`), is a logistic regression with a quadratic penalty, fitted by L-BFGS from zero: nothing is drawn by
chance.
"""

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

from mi_llm import storage
from mi_llm.apps.chat import detector, guard

HERE = Path(__file__).parent
MOST = 4  # sentences of one line
WEIGHTS = {"hand": 1.0, "samples": 0.05}  # of a line, by the first word of its file's name
SINGLE, SEVERAL = 0.3, 0.12  # of a line in any other file: of one that is one sentence, and of one that stands for several
PENALTY = 0.0015
LONGER = 0.4  # what a sequence of three, or a pair with a gap, counts beside a shorter one: most fit by chance
PRIOR = 0.15  # score of a text of which no feature is known, whatever share of the sentences is danger
ITERATIONS = 80  # of each fit at most
RARE = 2  # a feature must occur in this many lines
LEAST = 0.1  # smaller coefficients are left out
CHOICE = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Example:
    """One sentence: what it is an example of, in which tier, its weight, and the line that it comes from."""

    text: str
    label: str
    tier: str
    weight: float
    line: str


def spelled(line: str) -> list[str]:
    """The sentences that a line stands for, at most `MOST`, the same ones every time."""
    parts = CHOICE.split(line)
    choices = [part.split("|") if at % 2 else [part] for at, part in enumerate(parts)]
    number = math.prod(map(len, choices))
    if number <= MOST:
        return ["".join(chosen) for chosen in itertools.product(*choices)]
    drawn = random.Random(line)  # seeded by the line
    return list(dict.fromkeys("".join(drawn.choice(choice) for choice in choices) for _ in range(MOST)))


def examples(folder: Path) -> list[Example]:
    """All examples of a folder's files; a heading `## label tier` holds for the lines below it."""
    all_examples = []
    for path in sorted(folder.glob("*.txt")):
        label, tier = "none", "none"
        for line in storage.read_text(path).splitlines():
            if line.startswith("## "):
                label, tier = (*line.split()[1:], "none")[:2]
            elif line.strip() and not line.startswith("# "):
                texts = spelled(line)
                weight = WEIGHTS.get(path.stem.split("_")[0], SINGLE if len(texts) == 1 else SEVERAL)
                all_examples += [Example(text, label, tier, weight / len(texts), line) for text in texts]
    return all_examples


def whole(text: str) -> frozenset[str]:
    """The features of a text, all of it as one window."""
    known = guard.rules()
    return frozenset().union(*detector.parts(known.plain(known.folded(text))))


def share(name: str) -> float:
    """How much a feature counts beside others; the penalty on its coefficient is divided by the square of it."""
    parts = name.split() if " " in name else name if detector.HAN.search(name) else [name]
    return LONGER if "_" in name or len(parts) == detector.LENGTH else 1.0


def matrix(feature_sets: Sequence[frozenset[str]], names: dict[str, int]) -> csr_matrix:
    """One row per text; a column per known feature, at its share."""
    known = [sorted(names[name] for name in features if name in names) for features in feature_sets]
    sizes = np.array([1 / detector.weight(len(features)) for features in feature_sets], dtype=np.float32)
    columns = np.fromiter(itertools.chain.from_iterable(known), dtype=np.int32)
    starts = np.array([0, *itertools.accumulate(map(len, known))], dtype=np.int32)
    values = np.repeat(sizes, np.diff(starts)) * shares(names)[columns]
    return csr_matrix((values, columns, starts), shape=(len(feature_sets), len(names)))


def shares(names: dict[str, int]) -> np.ndarray:
    """The share of each column's feature."""
    return np.array([share(name) for name in names], dtype=np.float32)


def common(examples: Sequence[Example], feature_sets: Sequence[frozenset[str]]) -> dict[str, int]:
    """A column for each feature that occurs in at least `RARE` lines."""
    lines: dict[str, set[str]] = {}
    for example, features in zip(examples, feature_sets, strict=True):
        for name in features:
            lines.setdefault(name, set()).add(example.line)
    return {name: at for at, name in enumerate(sorted(name for name, within in lines.items() if len(within) >= RARE))}


def fit(x: csr_matrix, target: np.ndarray, weight: np.ndarray, penalty: float = PENALTY) -> np.ndarray:
    """Coefficients and, last, the bias of a logistic regression: the least weighted log loss plus a quadratic penalty.

    The bias is that of `PRIOR`. A fitted one would say how many of the sentences are danger, and alarm at any short text.
    """
    total = weight.sum()
    back = x.T.tocsr()
    bias = math.log(PRIOR / (1 - PRIOR))

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ theta.astype(np.float32) + bias
        value = (weight * (np.logaddexp(0, z) - target * z)).sum() / total + penalty / 1000 * (theta**2).sum()
        error = weight * (1 / (1 + np.exp(-z)) - target) / total
        return value, back @ error.astype(np.float32) + 2 * penalty / 1000 * theta

    theta: np.ndarray = minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS}).x
    return np.append(theta, bias)


def training() -> None:
    """Fit both detectors of the bundle."""
    for kind in ("messages", "replies"):
        train(HERE / "sentences" / kind, HERE / f"detector_{kind}.csv")


def train(folder: Path, out: Path) -> None:
    """Fit the coefficients for a folder of sentences and write them as CSV, in tenths: one column per label, the bias first."""
    read = examples(folder)
    seen = [whole(example.text) for example in read]
    names = common(read, seen)
    x = matrix(seen, names)
    weight = np.array([example.weight for example in read])
    labels: list[str] = [label for label in (*guard.CATEGORIES, *guard.FAULTS) if any(example.label == label for example in read)]
    targets = [[example.label != "none" for example in read], *([e.label == label for e in read] for label in labels)]
    if any(example.tier == "possible" for example in read):
        labels.append(detector.GRAVE)
        targets.append([example.tier == "plain" for example in read])
    scale = np.append(shares(names), 1.0)  # a text is scored without shares, so the coefficients have them
    fitted = [fit(x, np.array(target, dtype=float), weight) * scale for target in targets]
    table = [["", *(f"{theta[-1] * detector.SCALE:.0f}" for theta in fitted)]]
    for name, at in names.items():
        values = [theta[at] for theta in fitted]
        if max(map(abs, values)) >= LEAST:
            table.append([name, *(f"{value * detector.SCALE:.0f}" if abs(value) >= LEAST else "" for value in values)])
    storage.write_text(out, storage.csv_text(["feature", detector.ANY, *labels], table))
    kinds = Counter(example.label for example in read)
    lines = len({example.line for example in read})
    print(f"{out}: {len(table) - 1} coefficients from {len(read)} sentences in {lines} lines; {dict(kinds)}")
