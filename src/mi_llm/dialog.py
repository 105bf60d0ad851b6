"""Dialogs, their turns, and the rounds they are divided into: the data that the stages pass on.

A *volley* is everything one person says before the other speaks. A *round* is a client volley and the counselor volley
that answers it (paper, Automatic Evaluation): its history is all rounds before it.
"""

import math
import statistics
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mi_llm import storage

Role = Literal["client", "counselor"]


class Turn(BaseModel):
    """One volley: who speaks, and what they say."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Role
    text: str


class Dialog(BaseModel):
    """One counseling dialog.

    `id` is unique in its source; `source` names the corpus; `meta` keeps what the corpus reader learned besides the text
    (file, line, topic, quality).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    source: str
    turns: tuple[Turn, ...]
    meta: dict[str, Any] = Field(default_factory=dict)

    @property
    def one_sided(self) -> bool:
        """Whether the client or the counselor says nothing."""
        return len({turn.role for turn in self.turns}) < 2

    def rounds(self) -> Iterator["Round"]:
        """Yield each client volley that a counselor volley answers, with all turns before it as history."""
        number = 0
        for index in range(len(self.turns) - 1):
            question, answer = self.turns[index], self.turns[index + 1]
            if question.role == "client" and answer.role == "counselor":
                number += 1
                yield Round(
                    id=f"{self.id}#{number}",
                    dialog=self.id,
                    number=number,
                    history=self.turns[:index],
                    client=question.text,
                    counselor=answer.text,
                )


class Round(BaseModel):
    """One test sample: what the client says, the reference reply, and everything said before."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    dialog: str
    number: int
    history: tuple[Turn, ...]
    client: str
    counselor: str


def write_dialogs(path: Path, dialogs: Iterable[Dialog]) -> None:
    """Write dialogs as JSON Lines."""
    storage.write_lines(path, (dialog.model_dump() for dialog in dialogs))


def read_dialogs(path: Path) -> list[Dialog]:
    """Read dialogs that `write_dialogs` wrote."""
    return [Dialog.model_validate(record) for record in storage.read_lines(path)]


def write_rounds(path: Path, rounds: Iterable[Round]) -> None:
    """Write round samples as JSON Lines."""
    storage.write_lines(path, (sample.model_dump() for sample in rounds))


def read_rounds(path: Path) -> list[Round]:
    """Read round samples that `write_rounds` wrote."""
    return [Round.model_validate(record) for record in storage.read_lines(path)]


def characters(text: str) -> int:
    """Letters, digits and ideographs of a text: what Table 3 calls words, punctuation and spaces left out."""
    return sum(unicodedata.category(character)[0] in "LNM" for character in text)


class Features:
    """Table 3, gathered dialog by dialog: rounds per dialog, characters per volley by role; means, population SDs.

    `count` says how long a text is. `add` takes any number of dialogs in constant memory; `row` gives the numbers, rounded
    to 4 decimals, all 0 while there is nothing to count.
    """

    def __init__(self, count: Callable[[str], int] = characters) -> None:
        self.count = count
        self.dialogs = 0
        self.moments = {"rounds": [0, 0, 0], "counselor": [0, 0, 0], "client": [0, 0, 0]}  # how many, sum, sum of squares

    def add(self, dialog: Dialog) -> None:
        """Count one dialog."""
        self.dialogs += 1
        pairs = zip(dialog.turns, dialog.turns[1:], strict=False)
        self.put("rounds", sum(before.role == "client" and after.role == "counselor" for before, after in pairs))
        for turn in dialog.turns:
            self.put(turn.role, self.count(turn.text))

    def put(self, what: str, number: int) -> None:
        """Add one number to the moments of `what`; sums of integers are exact."""
        moments = self.moments[what]
        moments[0] += 1
        moments[1] += number
        moments[2] += number * number

    def row(self) -> dict[str, Any]:
        """The numbers as `metrics.json` keeps them."""
        row: dict[str, Any] = {"dialogs": self.dialogs}
        for what, (count, total, squares) in self.moments.items():
            row[f"{what}_mean"] = round(total / count, 4) if count else 0.0
            row[f"{what}_sd"] = round(math.sqrt(count * squares - total * total) / count, 4) if count else 0.0
        return row


def features(dialogs: Iterable[Dialog]) -> dict[str, Any]:
    """Table 3's row for some dialogs, as `Features.row` gives it."""
    table = Features()
    for dialog in dialogs:
        table.add(dialog)
    return table.row()


def volley_lengths(dialogs: Sequence[Dialog]) -> dict[str, tuple[float, float]]:
    """Table 4's rule: rounds are counselor volleys; lengths are all characters, punctuation too, pooled over volleys.

    Returns (mean, SD) of `rounds`, `counselor`, `client`; the sample SD is over dialogs, of rounds and of mean lengths, NaN for a
    single dialog. A researcher's remark (`meta["remarks"]`) counts as a client volley without words, as the printed numbers show.
    """
    rounds = [sum(turn.role == "counselor" for turn in dialog.turns) for dialog in dialogs]
    means_and_sds = {"rounds": (statistics.fmean(rounds), deviation(rounds))}
    for role in ("counselor", "client"):
        lengths = [
            [len(turn.text) for turn in dialog.turns if turn.role == role]
            + [0] * (int(dialog.meta.get("remarks", 0)) if role == "client" else 0)
            for dialog in dialogs
        ]
        pooled = statistics.fmean(length for of_dialog in lengths for length in of_dialog)
        means_and_sds[role] = (pooled, deviation([statistics.fmean(of_dialog) for of_dialog in lengths if of_dialog]))
    return means_and_sds


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; nan of a single value."""
    return statistics.stdev(values) if len(values) > 1 else math.nan
