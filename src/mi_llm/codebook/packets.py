"""What there is to code: the blinded packets, who codes which, and the gold codes of training packets.

Reads `raters.json` and the packets it names, and of a training folder the packets and `codes.csv` and `globals.csv`. The key
that tells a packet's arm is never opened. Everything is read once, at the start: no path is ever made from what a browser sends.
"""

import csv
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mi_llm import storage
from mi_llm.codebook.coding import Behaviour, Global
from mi_llm.dialog import Turn
from mi_llm.problem import Problem

COORDINATOR = "coordinator"
CODES = ["rater", "packet", "volley", "code"]
RATINGS = ["rater", "packet", "code", "rating"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


class Packet(BaseModel):
    """One blinded transcript; turns count from 1, and a volley is the number of a counselor's turn."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    packet: str
    turns: tuple[Turn, ...] = Field(min_length=1)

    @property
    def volleys(self) -> tuple[int, ...]:
        """The numbers of the counselor's turns."""
        return tuple(number for number, turn in enumerate(self.turns, 1) if turn.role == "counselor")

    @property
    def language(self) -> Literal["zh-CN", "en"]:
        """The transcript's language, for fonts and screen readers: Chinese if it holds any Han character."""
        han = any(unicodedata.name(sign, "").startswith("CJK UNIFIED") for turn in self.turns for sign in turn.text)
        return "zh-CN" if han else "en"


@dataclass(frozen=True)
class Gold:
    """The gold codes of a training packet: behaviors by volley, and a rating for each global."""

    behaviours: Mapping[int, frozenset[Behaviour]]
    ratings: Mapping[Global, int]


@dataclass(frozen=True)
class Packets:
    """All that can be coded: `raters` holds each rater's packets in the order to be coded; `training` is everybody's."""

    raters: Mapping[str, tuple[str, ...]]
    study: Mapping[str, Packet]
    training: Mapping[str, Packet] = field(default_factory=dict)
    gold: Mapping[str, Gold] = field(default_factory=dict)

    def sharing(self, packet: str) -> tuple[str, ...]:
        """The raters who code a packet, by name."""
        return tuple(sorted(rater for rater, packets in self.raters.items() if packet in packets))


def read(folder: Path, training: Path | None = None) -> Packets:
    """Read the packets of a folder, and of a training folder where there is one.

    Raises Problem if a file is missing or malformed, or if gold codes do not fit their packets.
    """
    for path in filter(None, (folder, training)):
        if not path.is_dir():
            found = "a file" if path.exists() else "no such folder"
            raise Problem(str(path), found, "a folder of packets", "name the folder that holds them")
    raters = _raters(folder / "raters.json")
    study = {name: _packet(folder / f"{name}.json") for name in sorted({name for names in raters.values() for name in names})}
    if training is None:
        return Packets(raters, study)
    # a training folder may be an output of `blind`, whose packets lie in a folder of their own beside the codes
    packet_folder = training / "packets" if (training / "packets").is_dir() else training
    names = sorted(path.stem for path in packet_folder.glob("*.json") if path.name != "raters.json")
    if not names:
        raise Problem(str(packet_folder), "no packet", "training packets, <packet>.json", "name the folder that holds them")
    exercises = {name: _packet(packet_folder / f"{name}.json") for name in names}
    return Packets(raters, study, exercises, _gold(training, exercises))


def _raters(path: Path) -> dict[str, tuple[str, ...]]:
    value = storage.read_json(path)
    if not isinstance(value, dict) or not value:
        raise Problem(str(path), "no raters", '{"rater-1": ["<packet>", …], …}', "run stage `blind` again")
    for rater, packets in value.items():
        where = f"{path}, {rater}"
        if not _NAME.fullmatch(rater) or rater == COORDINATOR:
            raise Problem(where, "not a rater's name", "up to 40 letters, digits, - and _", "rename the rater")
        if not isinstance(packets, list) or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in packets):
            raise Problem(where, repr(packets)[:60], "a list of packets' ids", "run stage `blind` again")
        if len(set(packets)) < len(packets):
            raise Problem(where, "a packet twice", "each packet once", "remove one of the two")
    return {rater: tuple(packets) for rater, packets in value.items()}


def _packet(path: Path) -> Packet:
    where = str(path)
    try:
        packet = Packet.model_validate(storage.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(str(part) for part in first["loc"])
        raise Problem(f"{where}, {location}", first["msg"], "packet and turns", "run stage `blind` again") from None
    if packet.packet != path.stem:
        raise Problem(where, f"packet {packet.packet}", f"packet {path.stem}, as the file is named", "rename the file")
    if not packet.volleys:
        raise Problem(where, "no counselor turn", "something to code", "leave this packet out")
    return packet


def _gold(folder: Path, packets: Mapping[str, Packet]) -> dict[str, Gold]:
    codes, ratings = folder / "codes.csv", folder / "globals.csv"
    behaviours: dict[str, dict[int, set[Behaviour]]] = {name: {} for name in packets}
    for where, row in _rows(codes, CODES):
        packet = _member(where, "packet", row, packets)
        volley = _member(where, "volley", row, {str(number): number for number in packets[packet].volleys})
        seen = behaviours[packet].setdefault(int(volley), set())
        if row["code"]:
            seen.add(Behaviour(_member(where, "code", row, [str(code) for code in Behaviour])))
    levels: dict[str, dict[Global, int]] = {name: {} for name in packets}
    for where, row in _rows(ratings, RATINGS):
        packet = _member(where, "packet", row, packets)
        code = Global(_member(where, "code", row, [str(code) for code in Global]))
        levels[packet][code] = int(_member(where, "rating", row, list("12345")))
    for name, transcript in packets.items():
        missing = [str(number) for number in transcript.volleys if number not in behaviours[name]]
        if missing:
            raise Problem(f"{codes}, {name}", f"volley {missing[0]} has no row", "a gold code or an empty one", "add the row")
        unrated = [code for code in Global if code not in levels[name]]
        if unrated:
            raise Problem(f"{ratings}, {name}", f"{unrated[0]} has no rating", "a rating for each global", "add the row")
    return {
        name: Gold({volley: frozenset(codes) for volley, codes in sorted(behaviours[name].items())}, levels[name])
        for name in packets
    }


def _rows(path: Path, columns: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    reader = csv.DictReader(storage.read_text(path).splitlines())
    if reader.fieldnames != columns:
        raise Problem(str(path), f"columns {', '.join(reader.fieldnames or [])}", ", ".join(columns), "correct the header")
    raters: set[str] = set()
    for number, row in enumerate(reader, 2):
        where = f"{path}, line {number}"
        if None in row.values() or None in row:
            raise Problem(where, "not four fields", ", ".join(columns), "correct the line")
        raters.add(row["rater"])
        if len(raters) > 1:
            raise Problem(where, f"raters {' and '.join(sorted(raters))}", "gold codes of one rater", "keep one rater's rows")
        yield where, row


def _member(where: str, column: str, row: Mapping[str, str], allowed: Any) -> str:
    if row[column] and row[column] in allowed:
        return row[column]
    raise Problem(f"{where}, {column}", row[column] or "empty", ", ".join(allowed), "correct the field")
