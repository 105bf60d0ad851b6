"""What there is to code: the blinded packets, who codes which, and the gold codes of training packets.

Reads `raters.json` and the packets it names, and of a training folder the packets and `codes.csv` and `globals.csv`. The key
that tells a packet's arm is never opened. Everything is read once, at the start: no path is ever made from what a browser sends.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mi_llm import storage
from mi_llm.codebook.tables import Behaviors, Coding, Transcripts, coded_by_people, read_people, volleys
from mi_llm.dialog import Turn
from mi_llm.problem import Problem

COORDINATOR = "coordinator"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


class Packet(BaseModel):
    """One blinded transcript; turns count from 1, and a volley is the number of a counselor's turn.

    `guess`: whether its rater is asked which arm it came from; not of one's own transcripts, nor in training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    packet: str
    turns: tuple[Turn, ...] = Field(min_length=1)
    guess: bool = True

    @property
    def volleys(self) -> tuple[int, ...]:
        """The numbers of the counselor's turns."""
        return tuple(volleys(self.turns))

    @property
    def language(self) -> Literal["zh-CN", "en"]:
        """The transcript's language, for fonts and screen readers: Chinese if it holds any Han character."""
        han = any(unicodedata.name(sign, "").startswith("CJK UNIFIED") for turn in self.turns for sign in turn.text)
        return "zh-CN" if han else "en"


@dataclass(frozen=True)
class Packets:
    """All that can be coded: `raters` holds each rater's packets in the order to be coded; `training` is everybody's.

    `hidden` are gold codes of some of the study's packets, which nothing shows to raters.
    """

    raters: Mapping[str, tuple[str, ...]]
    study: Mapping[str, Packet]
    training: Mapping[str, Packet] = field(default_factory=dict)
    gold: Mapping[str, Coding] = field(default_factory=dict)
    hidden: Mapping[str, Behaviors] = field(default_factory=dict)

    def sharing(self, packet: str) -> tuple[str, ...]:
        """The raters who code a packet, by name."""
        return tuple(sorted(rater for rater, packets in self.raters.items() if packet in packets))


def read(folder: Path, training: Path | None = None, gold: Path | None = None) -> Packets:
    """Read the packets of a folder, and of a training folder and a file of hidden gold codes where there are any.

    Raises Problem if a file is missing or malformed, or if gold codes do not fit their packets.
    """
    for path in filter(None, (folder, training)):
        if not path.is_dir():
            found = "a file" if path.exists() else "no such folder"
            raise Problem(str(path), found, "a folder of packets", "name it, or make packets of a folder with --transcripts")
    raters = _raters(folder / "raters.json")
    study = {name: _packet(folder / f"{name}.json") for name in sorted({name for names in raters.values() for name in names})}
    hidden = hidden_gold(gold, {name: packet.turns for name, packet in study.items()}) if gold else {}
    if training is None:
        return Packets(raters, study, hidden=hidden)
    # a training folder may be an output of `blind`, whose packets lie in a folder of their own beside the codes
    packet_folder = training / "packets" if (training / "packets").is_dir() else training
    exercises = {name: packet.model_copy(update={"guess": False}) for name, packet in _packets(packet_folder).items()}
    if not exercises:
        raise Problem(str(packet_folder), "no packet", "training packets, <packet>.json", "name the folder that holds them")
    return Packets(raters, study, exercises, _gold(training, exercises), hidden)


def hidden_gold(path: Path, transcripts: Transcripts) -> dict[str, Behaviors]:
    """The gold codes of some transcripts, by name; raises Problem for an unknown transcript, and for codes of several raters."""
    coded = coded_by_people(path, transcripts)
    if len(raters := sorted({rater for rater, _ in coded})) > 1:
        raise Problem(str(path), f"raters {' and '.join(raters)}", "gold codes of one rater", "keep one rater's rows")
    return {name: behaviors for (_, name), behaviors in coded.items()}


def transcripts_of(folder: Path) -> dict[str, Sequence[Turn]]:
    """The turns of every packet of a folder, by the packet's name; raises Problem for a malformed packet."""
    return {name: packet.turns for name, packet in _packets(folder).items()}


def _packets(folder: Path) -> dict[str, Packet]:
    return {path.stem: _packet(path) for path in sorted(folder.glob("*.json")) if path.name != "raters.json"}


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


def _gold(folder: Path, packets: Mapping[str, Packet]) -> dict[str, Coding]:
    codings = read_people(folder, {name: packet.turns for name, packet in packets.items()})
    gold = {coding.packet: coding for coding in codings}
    raters = sorted({coding.rater for coding in codings})
    if len(raters) > 1:
        found = f"raters {' and '.join(raters)}"
        raise Problem(str(folder / "codes.csv"), found, "gold codes of one rater", "keep one rater's rows")
    for name in packets:
        if name not in gold or not gold[name].behaviors or not gold[name].ratings:
            expected = "its rows in codes.csv and globals.csv"
            raise Problem(f"{folder}, packet {name}", "no gold codes", expected, "add them, or remove the packet")
    return gold
