"""How a change becomes a code: what a rater may change, and what happens where two tabs or devices change the same item.

A change names the item, the new value, and the change it builds on. It is written once, however often it is sent. If
the item has meanwhile changed, it is not written: both values are shown to the rater, who decides.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from mi_llm.apps.desk import store as memory
from mi_llm.apps.desk.store import Desk, Held, State, Store
from mi_llm.codebook.coding import Behavior, Global
from mi_llm.codebook.packets import Packet, Packets
from mi_llm.codebook.tables import ANSWERS

NOTE = 4_000  # characters
Reason = Literal["unknown", "done", "closed", "incomplete", "shown"]
Id = Annotated[str, Field(pattern=r"^[0-9a-z-]{8,40}$")]
# behaviors of a volley (empty: coded, nothing there), a global's rating, a note or a guess, a mark; null takes it back
Value = Annotated[list[Behavior], Field(max_length=len(Behavior))] | StrictBool | StrictInt | Annotated[
    str, Field(max_length=NOTE)
] | None  # fmt: skip


class Change(BaseModel):
    """A rater's change of an item: `base` is the change that the rater saw before it, `undoes` the one that this one undoes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: Id
    item: str = Field(pattern=r"^(volley-[0-9]{1,5}|shown-[0-9]{1,5}|global-[A-Z]{3}|note|guess|done)$")
    value: Value
    base: Id | Literal[""]
    undoes: Id | None = None


class Changes(BaseModel):
    """What a browser sends: changes in the order they were made, and the rater whom it believes to be signed in."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    rater: str
    changes: list[Change] = Field(max_length=500)


class Outcome(BaseModel):
    """The outcome of a change, and the item's present value; `gold` comes with a training volley that was just compared."""

    id: str
    item: str
    status: Literal["saved", "conflict", "refused"]
    value: Any
    version: str
    reason: Reason | None = None
    gold: list[Behavior] | None = None


def packet_of(packets: Packets, desk: Desk) -> Packet:
    """The transcript that a desk is about."""
    return (packets.study if desk.part == "packets" else packets.training)[desk.packet]


def save(store: Store, packets: Packets, desk: Desk, changes: Sequence[Change]) -> list[Outcome]:
    """Write changes in one transaction; when this returns they are on the disk."""
    with store.writing() as database:
        outcomes = []
        for change in changes:
            state = memory.state(database, desk)
            held = state.get(change.item, Held())
            status, reason = _judge(database, packets, desk, state, change)
            if status == "new":
                memory.write(
                    database,
                    desk,
                    change.item,
                    change.value,
                    before=held,
                    base=change.base,
                    change=change.id,
                    undoes=change.undoes,
                )
                held = Held(change.value, change.id)
            outcomes.append(
                Outcome(
                    id=change.id, item=change.item, status="saved" if status == "new" else status, value=held.value,
                    version=held.version, reason=reason, gold=_gold(packets, desk, change.item) if held.value else None,
                )
            )  # fmt: skip
    return outcomes


def _judge(
    database: Any, packets: Packets, desk: Desk, state: State, change: Change
) -> tuple[Literal["new", "saved", "conflict", "refused"], Reason | None]:
    if memory.known(database, desk, change.id):
        return "saved", None
    reason = _refusal(packets, desk, state, change) or _reopening(database, packets, desk, change)
    if reason:
        return "refused", reason
    held = state.get(change.item, Held())
    # an equal value is no conflict, whatever it was based on
    return ("new" if change.base == held.version or change.value == held.value else "conflict"), None


def _refusal(packets: Packets, desk: Desk, state: State, change: Change) -> Reason | None:
    """Why a change may not be made; None where it may."""
    packet, (kind, _, key) = packet_of(packets, desk), change.item.partition("-")
    if not _fits(packet, desk, kind, key, change.value):
        return "unknown"
    if kind not in ("done", "note") and state.get("done", Held()).value:
        return "done"
    if kind == "volley" and f"shown-{key}" in state:
        return "shown"
    if kind == "shown" and state.get(f"volley-{key}", Held()).value is None:
        return "incomplete"
    if kind in ("done", "guess") and change.value and set(missing(packet, desk, state)) - {kind}:
        return "incomplete"
    return None


def _fits(packet: Packet, desk: Desk, kind: str, key: str, value: Value) -> bool:
    """Whether the packet has such an item, and the item such a value."""
    volley, rating = key in map(str, packet.volleys), type(value) is int and 1 <= value <= 5
    fits = {
        "volley": volley and (value is None or (isinstance(value, list) and len(set(value)) == len(value))),
        "shown": volley and desk.part == "training" and value is True,
        "global": key in set(Global) and (value is None or rating),
        "note": isinstance(value, str),
        "guess": packet.guess and (value is None or value in ANSWERS),
        "done": value is True or value is None,
    }
    return fits[kind]


def _reopening(database: Any, packets: Packets, desk: Desk, change: Change) -> Reason | None:
    """Why `done` may not be taken back: not once all who share a packet are done, nor in training, where the gold was shown."""
    if change.item != "done" or change.value:
        return None
    if desk.part == "training":
        return "closed"
    other_desks = [Desk(rater, desk.part, desk.packet) for rater in packets.sharing(desk.packet) if rater != desk.rater]
    done = [memory.state(database, other_desk).get("done", Held()).value for other_desk in other_desks]
    return "closed" if other_desks and all(done) else None


def missing(packet: Packet, desk: Desk, state: State) -> list[str]:
    """The items that a packet still needs before it is done; the guess comes after all others, so that it colors none of them."""
    needed = [f"volley-{number}" for number in packet.volleys] + [f"global-{code}" for code in Global]
    if desk.part == "training":
        needed += [f"shown-{number}" for number in packet.volleys]
    if packet.guess:
        needed.append("guess")
    return [item for item in needed if state.get(item, Held()).value is None]


def _gold(packets: Packets, desk: Desk, item: str) -> list[Behavior] | None:
    kind, _, number = item.partition("-")
    return sorted(packets.gold[desk.packet].behaviors[int(number)]) if kind == "shown" else None


def gold_shown(packets: Packets, desk: Desk, state: State) -> dict[str, list[Behavior]]:
    """The gold codes of the training volleys that were compared, by volley."""
    shown = [item for item in state if item.startswith("shown-")]
    return {item.removeprefix("shown-"): _gold(packets, desk, item) or [] for item in shown}
