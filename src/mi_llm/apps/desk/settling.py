"""Settling differences: what the raters of a finished packet see differently, and what the coordinator decided, with a reason.

A decision is kept with what it was about: if a rater changes that later, it is to be settled again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from mi_llm.apps.desk.store import SETTLED, Desk, Held, State
from mi_llm.codebook.coding import Behavior, Global, volley
from mi_llm.codebook.consensus import Item, Settled, differences
from mi_llm.codebook.packets import COORDINATOR
from mi_llm.codebook.tables import Coding

States = Mapping[Desk, State]
Finished = Mapping[str, Sequence[Coding]]  # the codings of each released packet
Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]


class Decision(BaseModel):
    """What the coordinator sends: an item that the raters see differently, its settled value, and why."""

    model_config = ConfigDict(extra="forbid")
    item: str
    value: Annotated[list[Behavior], Field(max_length=len(Behavior))] | Annotated[int, Field(ge=1, le=5, strict=True)]
    reason: Reason


class Reopening(BaseModel):
    """Whose finished packet the coordinator opens again, and why."""

    model_config = ConfigDict(extra="forbid")
    rater: str
    reason: Reason


@dataclass(frozen=True)
class ToSettle:
    """A packet: on how many items its raters differ, and how many of them were settled."""

    packet: str
    differing: int
    settled: int

    @property
    def settled_all(self) -> bool:
        """Whether nothing is open."""
        return self.settled == self.differing


def item_name(item: Item) -> str:
    """An item's name on the desk."""
    return f"global-{item}" if isinstance(item, Global) else f"volley-{item}"


def given(codings: Sequence[Coding], item: Item) -> dict[str, Any]:
    """What each rater gave to an item: codes by the rule for a volley, or a rating."""
    if isinstance(item, Global):
        return {coding.rater: coding.ratings[item] for coding in codings}
    return {coding.rater: sorted(map(str, volley(coding.behaviors[item]))) for coding in codings}


def decisions(finished: Finished, states: States) -> dict[tuple[str, Item], Settled]:
    """What was settled of the differences that exist now: what a rater changed since then is to be settled again."""
    settled = {}
    for name, codings in finished.items():
        state = states.get(Desk(COORDINATOR, SETTLED, name), {})
        for item in differences(codings):
            value = state.get(item_name(item), Held()).value
            if value is not None and value["of"] == given(codings, item):
                chosen = value["value"]
                behaviors = chosen if isinstance(chosen, int) else frozenset(map(Behavior, chosen))
                settled[name, item] = Settled(behaviors, value["reason"])
    return settled


def to_settle(finished: Finished, states: States) -> list[ToSettle]:
    """The released packets, with the differences of their raters."""
    settled = decisions(finished, states)
    rows = []
    for name, codings in finished.items():
        items = differences(codings)
        rows.append(ToSettle(name, len(items), sum((name, item) in settled for item in items)))
    return rows
