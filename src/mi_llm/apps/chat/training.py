"""How the guard's detectors are made: `mi-llm tool guard-train` fits the coefficients that `detector.py` reads.

Reads the sentences in `sentences/` (see docs/safety.md) and `concepts.yaml`, writes `detector_messages.csv` and
`detector_replies.csv`. A line `{a|b} c` stands for several sentences, which weigh as much together as the square root of their
number. Each label is a logistic regression with a quadratic penalty, fitted by L-BFGS from zero: nothing is drawn by chance.
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
MOST = 24  # sentences of one line
PENALTY = 0.001
POSSIBLE = 0.5  # the target of a sentence that may mean danger
RARE = 2  # a feature must occur in this many lines
LEAST = 0.02  # smaller coefficients are left out
CHOICE = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Example:
    """One sentence: what it is an example of, with what target and weight, and the line and part it comes from."""

    text: str
    label: str
    target: float
    weight: float
    line: str
    part: str


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
    """All examples of a folder's files; a heading `## label tier` holds for the lines below it, `# part` names a part."""
    found = []
    for path in sorted(folder.glob("*.txt")):
        label, target, part = "none", 0.0, ""
        for line in storage.read_text(path).splitlines():
            if line.startswith("## "):
                label, _, tier = line[3:].partition(" ")
                target = {"plain": 1.0, "possible": POSSIBLE, "": 0.0}[tier]
                part = line[3:]
            elif line.startswith("# "):
                part = f"{label} {line[2:]}"
            elif line.strip():
                texts = spelled(line)
                found += [Example(text, label, target, len(texts) ** -0.5, line, part) for text in texts]
    return found


def rows(example: Example) -> list[dict[str, float]]:
    """The features that an example is learned by: danger as one window, an ordinary text as each of its windows."""
    text = guard.rules().plain(example.text)
    return [detector.features(detector.clauses(text))] if example.target else list(detector.windows(text))


def matrix(found: Sequence[dict[str, float]], names: dict[str, int]) -> csr_matrix:
    """One row per window; a column per known feature."""
    data, columns, starts = [], [], [0]
    for window in found:
        for name, value in window.items():
            if name in names:
                data.append(value)
                columns.append(names[name])
        starts.append(len(data))
    return csr_matrix((data, columns, starts), shape=(len(starts) - 1, len(names)))


def common(examples: Sequence[Example], windows: Sequence[dict[str, float]]) -> dict[str, int]:
    """A column for each feature that occurs in at least `RARE` lines."""
    lines: dict[str, set[str]] = {}
    for example, window in zip(examples, windows, strict=True):
        for name in window:
            lines.setdefault(name, set()).add(example.line)
    return {name: at for at, name in enumerate(sorted(name for name, within in lines.items() if len(within) >= RARE))}


def fit(x: csr_matrix, target: np.ndarray, weight: np.ndarray, penalty: float = PENALTY) -> np.ndarray:
    """Coefficients and, last, the bias of a logistic regression: the least weighted log loss plus a quadratic penalty."""
    total = weight.sum()

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ theta[:-1] + theta[-1]
        value = (weight * (np.logaddexp(0, z) - target * z)).sum() / total + penalty / 1000 * (theta[:-1] ** 2).sum()
        error = weight * (1 / (1 + np.exp(-z)) - target) / total
        return value, np.append(x.T @ error + 2 * penalty / 1000 * theta[:-1], error.sum())

    theta: np.ndarray = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 400}).x
    return theta


def training() -> None:
    """Fit both detectors of the bundle."""
    for kind in ("messages", "replies"):
        train(HERE / "sentences" / kind, HERE / f"detector_{kind}.csv")


def train(folder: Path, out: Path) -> None:
    """Fit the coefficients for a folder of sentences and write them as CSV: a label a column, the bias first."""
    read = examples(folder)
    pairs = [(example, window) for example in read for window in rows(example)]
    found, seen = [example for example, _ in pairs], [window for _, window in pairs]
    names = common(found, seen)
    x = matrix(seen, names)
    weight = np.array([example.weight for example in found])
    labels = [label for label in dict.fromkeys((*guard.CATEGORIES, *guard.FAULTS)) if any(e.label == label for e in found)]
    fitted = [fit(x, np.array([e.target if e.label == label else 0.0 for e in found]), weight) for label in labels]
    table = [["", *(f"{theta[-1]:.3f}" for theta in fitted)]]
    for name, at in names.items():
        values = [theta[at] for theta in fitted]
        if max(map(abs, values)) >= LEAST:
            table.append([name, *(f"{value:.2f}" for value in values)])
    storage.write_text(out, storage.csv_text(["feature", *labels], table))
    kinds = Counter((example.label, example.target) for example in read)
    print(
        f"{out}: {len(table) - 1} coefficients from {len(read)} sentences in {len({e.line for e in read})} lines; {dict(kinds)}"
    )
