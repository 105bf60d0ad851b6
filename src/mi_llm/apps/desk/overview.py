"""What the coordinator sees first, and what a rater sees after a packet: how far each rater is, how long a packet takes, how long
the rest will take, and what needs attention.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Literal

from mi_llm.apps.desk import agreement
from mi_llm.apps.desk.agreement import States
from mi_llm.apps.desk.store import Desk, Held, Part, Work
from mi_llm.codebook.packets import Packets

Kind = Literal["untrained", "badly_trained", "idle", "stalled"]  # of what needs the coordinator
STALLED = timedelta(days=7)  # without a change, after which a packet that was begun is named to the coordinator


@dataclass(frozen=True)
class Pace:
    """How far a rater is: packets finished and begun, among all; `minutes` is the median work on a finished one, if any is."""

    done: int
    begun: int
    total: int
    minutes: float | None

    @property
    def left(self) -> float | None:
        """The minutes that the unfinished packets will take at this pace."""
        return None if self.minutes is None else self.minutes * (self.total - self.done)


@dataclass(frozen=True)
class Next:
    """The packet that a rater should open next, and its place, from 1, among `total` of its part."""

    part: Part
    packet: str
    place: int
    total: int


@dataclass(frozen=True)
class Exceptional:
    """Something that needs the coordinator: `kind` names the sentence, and the rest fills it."""

    kind: Kind
    rater: str
    packet: str = ""
    value: float = 0.0


def finished(states: States, desk: Desk) -> bool:
    """Whether a rater has finished a packet."""
    return bool(states.get(desk, {}).get("done", Held()).value)


def pace(packets: Packets, states: States, work: Mapping[Desk, Work], rater: str) -> Pace:
    """How far a rater is with the study's packets, and how long one takes them."""
    names = packets.raters[rater]
    done = [name for name in names if finished(states, Desk(rater, "packets", name))]
    begun = sum(bool(states.get(Desk(rater, "packets", name))) for name in names if name not in done)
    seconds = [work[desk].seconds for name in done if (desk := Desk(rater, "packets", name)) in work]
    return Pace(len(done), begun, len(names), median(seconds) / 60 if seconds else None)


def upcoming(packets: Packets, states: States, rater: str, part: Part, packet: str = "") -> Next | None:
    """The unfinished packet that follows one in the rater's order, then those before it; after the training come the packets."""
    parts: list[tuple[Part, tuple[str, ...]]] = [("packets", packets.raters[rater])]
    if part == "training":
        parts.insert(0, ("training", tuple(packets.training)))
    for own, names in parts:
        start = names.index(packet) + 1 if packet in names else 0
        for name in (*names[start:], *names[:start]):
            if name != packet and not finished(states, Desk(rater, own, name)):
                return Next(own, name, names.index(name) + 1, len(names))
    return None


def exceptions(packets: Packets, states: States, work: Mapping[Desk, Work], threshold: float, now: datetime) -> list[Exceptional]:
    """Raters who have not begun, exercises that are open or went badly (κ below the threshold), and packets that lie still."""
    exceptionals = []
    for rater, names in packets.raters.items():
        trained = agreement.training(packets, states, rater, packets.training)
        if packets.training and (trained is None or trained.packets < len(packets.training)):
            exceptionals.append(
                Exceptional("untrained", rater, value=len(packets.training) - (trained.packets if trained else 0))
            )
        elif trained and (kappa := trained.behaviors[-1].kappa) is not None and kappa < threshold:
            exceptionals.append(Exceptional("badly_trained", rater, value=kappa))
        if not any(states.get(Desk(rater, "packets", name)) for name in names):
            exceptionals.append(Exceptional("idle", rater))
        for name in names:
            desk = Desk(rater, "packets", name)
            if desk in work and not finished(states, desk):
                rest = now - datetime.fromisoformat(work[desk].last)
                if rest > STALLED:
                    exceptionals.append(Exceptional("stalled", rater, name, rest.days))
    return exceptionals
