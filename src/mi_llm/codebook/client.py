"""Client language, on which MI works: change talk, sustain talk, or neither, by words alone; and what a session's codes show.

Reads `<language>/client_cues.yaml`, writes nothing. Stage `miti` measures how far the codes agree with AnnoMI's experts. The
share of change talk and its course over a session are those of the literature on client language (Magill et al. 2018,
doi:10.1037/ccp0000250).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from mi_llm import storage
from mi_llm.codebook.lexical import STUTTER, spoken
from mi_llm.dialog import Turn
from mi_llm.language import language
from mi_llm.problem import Problem


class Talk(StrEnum):
    """What a client's volley says of change; AnnoMI's codes have the same names."""

    CHANGE = "change"
    SUSTAIN = "sustain"
    NEUTRAL = "neutral"


@dataclass(frozen=True)
class ClientCoding:
    """A transcript's client turns as one rater coded them, by the number of the turn."""

    rater: str
    packet: str
    talks: Mapping[int, Talk]


COLUMNS = ["rater", "packet", "volley", "talk"]  # of `client.csv`, which stage `code` writes
VALUES = {Talk.CHANGE: 1.0, Talk.SUSTAIN: -1.0, Talk.NEUTRAL: 0.0}
FEWEST = 3  # client volleys from which on a session has a slope
Talks = Mapping[int, Talk]  # by the number of a client's turn


@cache
def expressions(code: str, file: str = "") -> dict[Talk, re.Pattern[str]]:
    """The expressions of a language, the bundle's or those of a study's file; raises Problem for a file of another form."""
    bundled = language.load(code).file("client_cues.yaml")
    content = storage.read_yaml(Path(file) if file else bundled)
    try:
        listed = {talk: list(map(str, content[talk.value])) for talk in (Talk.CHANGE, Talk.SUSTAIN)}
        if not all(listed.values()):
            raise ValueError("an empty list")
        return {talk: re.compile("|".join(f"(?:{cue})" for cue in cues)) for talk, cues in listed.items()}
    except (KeyError, TypeError, ValueError, re.error) as error:
        expected = "lists of expressions, `change` and `sustain`"
        raise Problem(file, f"{type(error).__name__}: {error}", expected, f"see {bundled}") from None


def talk_of(text: str, code: str = language.DEFAULT, cues: str = "") -> Talk:
    """The code of a client's volley: of which of the two it has more cues, the later of equally many; neutral without any.

    `code`: the study's language, `cues`: its file of them, else the bundle's; see `lexical.spoken`.
    """
    lower = STUTTER.sub("", text.lower().replace("’", "'")).replace("wanna", "want to").replace("gonna", "going to")
    here = spoken(lower, code).language.code
    matches_by_talk = {talk: list(cue.finditer(lower)) for talk, cue in expressions(here, cues if here == code else "").items()}
    if not any(matches_by_talk.values()):
        return Talk.NEUTRAL

    def weight(talk: Talk) -> tuple[int, int]:
        matches = matches_by_talk[talk]
        return len(matches), matches[-1].end() if matches else 0

    return max(matches_by_talk, key=weight)


def by_words(turns: Sequence[Turn], code: str = language.DEFAULT, cues: str = "") -> dict[int, Talk]:
    """The code of each client turn; turns of both roles count from 1."""
    return {number: talk_of(turn.text, code, cues) for number, turn in enumerate(turns, 1) if turn.role == "client"}


def share_of_change(talks: Talks) -> float:
    """Volleys of change talk over those of change or sustain talk; NaN without either."""
    change, sustain = (sum(talk is kind for talk in talks.values()) for kind in (Talk.CHANGE, Talk.SUSTAIN))
    return change / (change + sustain) if change + sustain else math.nan


def slope(talks: Talks) -> float:
    """How client language changes from the first volley to the last: the least-squares slope of 1 (change), 0, -1 (sustain).

    A session runs from 0 to 1, so a slope of 1 leads from neutral to change talk. NaN with fewer than `FEWEST` volleys.
    """
    if len(talks) < FEWEST:
        return math.nan
    values = [VALUES[talks[number]] for number in sorted(talks)]
    return float(np.polyfit(np.linspace(0, 1, len(values)), values, 1)[0])


def table(codings: Sequence[ClientCoding]) -> pd.DataFrame:
    """The rows of `client.csv`."""
    rows = [(coding.rater, coding.packet, number, str(talk)) for coding in codings for number, talk in coding.talks.items()]
    return pd.DataFrame(sorted(rows), columns=COLUMNS)


def read_table(path: Path) -> list[ClientCoding]:
    """The codings of a `client.csv`."""
    rows = pd.read_csv(path, dtype={"rater": str, "packet": str, "talk": str}, keep_default_na=False)
    return [
        ClientCoding(rater, packet, dict(zip(part["volley"].tolist(), map(Talk, part["talk"]), strict=True)))
        for (rater, packet), part in rows.groupby(["rater", "packet"])
    ]
