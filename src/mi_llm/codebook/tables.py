"""Tables of MITI codes, `codes.csv`, `globals.csv` and `guesses.csv`: how they are written, and how people's tables are read.

A row of `codes.csv` is one behavior in one counselor volley (code empty: none); a row of `globals.csv` is one rating; a row of
`guesses.csv`, which only people have, is the arm that a rater took a transcript for when everything else was coded. Stage
`code` writes them for all raters, the coding desk exports them, `code.human` and the desk's training folders hold people's. The
column `rater` says who coded: `lexical` and `llm:<model>` are programs, and no person may use these names.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mi_llm import registry, storage
from mi_llm.codebook.coding import Behavior, Global, volley
from mi_llm.dialog import Turn
from mi_llm.problem import Problem
from mi_llm.study import ARMS, REAL

Behaviors = dict[int, frozenset[Behavior]]  # by the number of a counselor turn: what the coder saw in it
Transcripts = Mapping[str, Sequence[Turn]]

CODES = ["rater", "packet", "volley", "code"]
RATINGS = ["rater", "packet", "code", "rating"]
PEOPLE = "human"  # the coder whose raters may have any name except a program's
SCALE = range(1, 6)
GUESSES = ["rater", "packet", "guess"]
UNSURE = "unsure"
ANSWERS = (*ARMS, REAL, UNSURE)  # what a rater may take a transcript for


@dataclass(frozen=True)
class Coding:
    """One transcript as one rater coded it; `ratings` is empty where the globals were not rated, `guess` where none was made."""

    rater: str
    packet: str
    behaviors: Behaviors
    ratings: Mapping[Global, int]
    guess: str = ""


def volleys(turns: Sequence[Turn]) -> list[int]:
    """The numbers of the counselor's turns; turns of both roles count from 1."""
    return [number for number, turn in enumerate(turns, 1) if turn.role == "counselor"]


def tables(codings: Sequence[Coding]) -> dict[str, pd.DataFrame]:
    """The rows of `codes.csv`, `globals.csv` and `guesses.csv`, sorted; a coded volley without a behavior has an empty code."""
    codes = [
        (coding.rater, coding.packet, number, code)
        for coding in codings
        for number, seen in coding.behaviors.items()
        for code in sorted(map(str, seen)) or [""]
    ]
    ratings = [(coding.rater, coding.packet, code, rating) for coding in codings for code, rating in coding.ratings.items()]
    guesses = [(coding.rater, coding.packet, coding.guess) for coding in codings if coding.guess]
    return {
        "codes": pd.DataFrame(sorted(codes), columns=CODES),
        "globals": pd.DataFrame(sorted(ratings), columns=RATINGS),
        "guesses": pd.DataFrame(sorted(guesses), columns=GUESSES),
    }


def read_tables(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`codes.csv` and `globals.csv` as `tables` made them: names and codes are text, even `NA` and `007`."""
    names = {"rater": str, "packet": str, "code": str}
    codes = pd.read_csv(folder / "codes.csv", dtype=names | {"volley": int}, keep_default_na=False)
    return codes, pd.read_csv(folder / "globals.csv", dtype=names | {"rating": int}, keep_default_na=False)


def read_guesses(folder: Path) -> pd.DataFrame:
    """`guesses.csv` as `tables` made it."""
    return pd.read_csv(folder / "guesses.csv", dtype=str, keep_default_na=False)


def coder_of(rater: str) -> str:
    """The coder that a rater belongs to, by the name: a program's begins with its coder's name, perhaps a colon and more."""
    name = rater.partition(":")[0]
    return name if name in registry.names(registry.CODERS) else PEOPLE


def automatic(rater: str) -> bool:
    """Whether a rater is a program."""
    return coder_of(rater) != PEOPLE


def read_people(folder: Path, transcripts: Transcripts) -> list[Coding]:
    """What people coded: `codes.csv` and `globals.csv` of a folder, and `guesses.csv` where the raters were asked to guess.

    Raises Problem with the row that is wrong.
    """
    seen = coded_by_people(folder / "codes.csv", transcripts)
    rated = rated_by_people(folder / "globals.csv", transcripts)
    path = folder / "guesses.csv"
    guessed = guessed_by_people(path, transcripts) if path.exists() else {}
    return [
        Coding(*key, seen.get(key, {}), rated.get(key, {}), guessed.get(key, "")) for key in sorted(seen.keys() | rated.keys())
    ]


def coded_by_people(path: Path, transcripts: Transcripts) -> dict[tuple[str, str], Behaviors]:
    """The codes of `codes.csv` by rater and packet: every counselor turn of a packet, or none."""
    coded_packets: dict[tuple[str, str], dict[int, list[str]]] = {}
    for where, (rater, packet, number, code) in rows(path, CODES):
        key = whose(where, rater, packet, transcripts)
        turn_numbers = {str(turn_number): turn_number for turn_number in volleys(transcripts[packet])}
        require(number in turn_numbers, where, f"the volley {number!r}", "the number of a turn of the counselor in this packet")
        require(not code or code in list(Behavior), where, f"the code {code!r}", f"{', '.join(Behavior)}, or nothing")
        codes = coded_packets.setdefault(key, {}).setdefault(turn_numbers[number], [])
        require(code not in codes, where, f"the code {code!r} of the same volley again", "each code once per volley")
        require(not codes or bool(code and codes[0]), where, "a volley with a code and with none", "codes, or one empty row")
        codes.append(code)
    for (rater, packet), coded in coded_packets.items():
        missing = [number for number in volleys(transcripts[packet]) if number not in coded]
        gap = f"nothing by {rater} on volley {missing[0]} of packet {packet}" if missing else ""
        require(not missing, str(path), gap, "every counselor turn coded, with an empty code if nothing is to code")
    return {
        key: {number: volley(Behavior(code) for code in codes if code) for number, codes in coded.items()}
        for key, coded in coded_packets.items()
    }


def rated_by_people(path: Path, transcripts: Transcripts) -> dict[tuple[str, str], dict[Global, int]]:
    """The ratings of `globals.csv` by rater and packet: all globals of a packet, or none."""
    rated_packets: dict[tuple[str, str], dict[Global, int]] = {}
    for where, (rater, packet, code, rating) in rows(path, RATINGS):
        key = whose(where, rater, packet, transcripts)
        require(code in list(Global), where, f"the code {code!r}", ", ".join(Global))
        require(rating in {str(number) for number in SCALE}, where, f"the rating {rating!r}", "a whole number from 1 to 5")
        ratings = rated_packets.setdefault(key, {})
        require(code not in ratings, where, f"the rating of {code} again", "each global once per packet")
        ratings[Global(code)] = int(rating)
    for (rater, packet), ratings in rated_packets.items():
        missing = [code for code in Global if code not in ratings]
        require(not missing, str(path), f"no {', '.join(missing)} by {rater} on packet {packet}", "all four globals")
    return rated_packets


def guessed_by_people(path: Path, transcripts: Transcripts) -> dict[tuple[str, str], str]:
    """The guesses of `guesses.csv` by rater and packet."""
    guesses: dict[tuple[str, str], str] = {}
    for where, (rater, packet, guess) in rows(path, GUESSES):
        key = whose(where, rater, packet, transcripts)
        require(guess in ANSWERS, where, f"the guess {guess!r}", ", ".join(ANSWERS))
        require(key not in guesses, where, "a second guess", "one guess per packet")
        guesses[key] = guess
    return guesses


def rows(path: Path, columns: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield (where, row) of a CSV file with these columns; rows are numbered as a spreadsheet shows them."""
    table = csv.reader(io.StringIO(storage.read_text(path), newline=""), strict=True)
    number = 0
    try:
        for number, row in enumerate(table, 1):
            where = f"{path}, row {number}"
            if number == 1:
                require(row == columns, where, f"the columns {', '.join(row)}", f"{', '.join(columns)}")
            elif row:
                require(len(row) == len(columns), where, f"{len(row)} columns", f"{len(columns)}: {', '.join(columns)}")
                yield where, row
    except csv.Error as error:
        raise refusal(f"{path}, row {number + 1}", f"not CSV ({error})", "a CSV file") from None
    require(number > 0, str(path), "an empty file", f"the columns {', '.join(columns)}")


def refusal(where: str, found: str, expected: str) -> Problem:
    """The error for a person's file that is not usable."""
    return Problem(where, found, expected, "correct the file, or export it from the desk again")


def require(condition: bool, where: str, found: str, expected: str) -> None:
    """Refuse a person's file that does not meet a condition."""
    if not condition:
        raise refusal(where, found, expected)


def whose(where: str, rater: str, packet: str, transcripts: Transcripts) -> tuple[str, str]:
    """The rater and packet of a row; refused unless the rater is a person and the packet belongs to this study."""
    person = rater == rater.strip() != "" and not automatic(rater)
    programs = " or ".join(name for name in registry.names(registry.CODERS) if name != PEOPLE)
    require(person, where, f"the rater {rater!r}", f"a person's name or number, not {programs}")
    require(packet in transcripts, where, f"the packet {packet!r}", "the name of a packet of this study")
    return rater, packet
