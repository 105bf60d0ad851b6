"""The open talks: what was said, by whom, and how a talk becomes a dialog of the study.

A talk lives in this process's memory only, belongs to one visitor, and is forgotten when it is ended, has been idle for
`IDLE_S`, or has to make room. The counselor's words in it are the model's own: a visitor can send client messages, nothing else.
"""

import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from mi_llm.apps.chat import codes
from mi_llm.apps.chat.counselors import Manner
from mi_llm.apps.chat.guard import ALERT, WINDOW, Category
from mi_llm.codebook.coding import Behavior
from mi_llm.dialog import Dialog, Turn
from mi_llm.engine.template import Message, messages, unmarked
from mi_llm.miti.clients import Profile
from mi_llm.study import Arm

Way = Literal["beside", "blind", "tuned", "base"]
WAYS: tuple[Way, ...] = get_args(Way)
Finish = Literal["", "stop", "length", "stopped", "withheld", "failed"]
Choice = Literal["left", "right", "tie", "neither"]
Criterion = Literal["understood", "respected", "helped"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
VOTE_ROUNDS = 3  # in which both sides said something, before a vote
ROUNDS = 60  # of one talk at most
CHARACTERS = 60_000  # of all its messages and replies
TALKS = 4  # of one visitor
VISITORS = 1000
IDLE_S = 2 * 3600.0
LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # without letters and digits that look alike


@dataclass
class Reply:
    """What one counselor says in a round: how it ended ("" while it comes), and why it is not shown or incomplete."""

    text: str = ""
    finish: Finish = ""
    why: str = ""  # a Fault if withheld, what Unanswered says if failed
    drawn: bool = False
    visible: str = ""  # the part that was checked and shown so far
    codes: tuple[Behavior, ...] = ()  # what the lexical coder sees in it

    @property
    def left_out(self) -> bool:
        """Whether its round is no part of the talk: it must not be shown, or the server does not take the message."""
        return self.finish == "withheld" or self.why == "refused"


@dataclass
class Round:
    """One client message: with the plain dangers that the guard saw in it, or else with a reply of each side."""

    client: str
    dangers: tuple[Category, ...] = ()
    help: tuple[Category, ...] = ()  # possible dangers: help lines stand under the replies
    replies: list[Reply] = field(default_factory=list)


@dataclass(frozen=True)
class Vote:
    """Which side was better in all and on each criterion, and why, in the voter's words."""

    choice: Choice
    criteria: Mapping[Criterion, Choice]
    reason: str


@dataclass
class Talk:
    """One talk: which model, which arms side by side, and what was said."""

    model: str
    way: Way
    sides: tuple[Arm, ...]
    profile: Profile | None
    id: str = field(default_factory=lambda: "".join(secrets.choice(LETTERS) for _ in range(12)))
    rounds: list[Round] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)  # the last client messages as they came, whatever was edited later
    alert: tuple[Category, ...] = ()
    alert_left: int = 0
    edited: int = 0
    guarded: int = 0
    looking: bool = False  # the guard is reading a message
    withheld: int = 0
    vote: Vote | None = None
    revealed: bool = False  # after a vote, which then stands
    participant: str = ""  # of an experiment

    @property
    def hidden(self) -> bool:
        """Whether the visitor must not know which side is which: before a blind vote, and if an experiment assigned one arm."""
        return (self.way == "blind" and not self.revealed) or (self.participant != "" and len(self.sides) == 1)

    @property
    def in_danger(self) -> bool:
        """Whether the client may be in danger: after the latest message, or since an answer of the guard shortly before."""
        return bool(self.alert or (self.rounds and self.rounds[-1].help))

    @property
    def compared(self) -> int:
        """The number of rounds in which each side said something."""
        return sum(bool(round_.replies) and all(reply.text for reply in round_.replies) for round_ in self.rounds)

    def tally(self, side: int) -> dict[str, Any]:
        """What the lexical coder saw in one side's replies so far."""
        return codes.tally(round_.replies[side].codes for round_ in self.rounds if round_.replies)

    @property
    def characters(self) -> int:
        """The number of characters in all messages and replies."""
        return sum(len(round_.client) + sum(len(reply.text) for reply in round_.replies) for round_ in self.rounds)

    def hear(self, text: str) -> None:
        """Remember a client message for the guard, and forget what it no longer reads."""
        self.heard.append(text)
        del self.heard[:-WINDOW]

    def alerted(self, dangers: tuple[Category, ...]) -> None:
        """Remember that the guard answered, or that it did not."""
        if dangers:
            self.alert, self.alert_left = dangers, ALERT
            self.guarded += 1
        else:
            self.alert_left = max(0, self.alert_left - 1)
            self.alert = self.alert if self.alert_left else ()

    def turns(self, side: int, until: int | None = None) -> list[Turn]:
        """The turns of the client and one side, without the guard's rounds and those that are left out.

        Messages that got no reply join the next: a volley is all that one person says before the other speaks.
        """
        turns: list[Turn] = []
        for round_ in self.rounds[:until]:
            if round_.dangers or (round_.replies and round_.replies[side].left_out):
                continue
            if turns and turns[-1].role == "client":
                turns[-1] = Turn(role="client", text=f"{turns[-1].text}\n{round_.client}")
            else:
                turns.append(Turn(role="client", text=round_.client))
            if round_.replies and round_.replies[side].text:
                turns.append(Turn(role="counselor", text=round_.replies[side].text))
        return turns

    def asked(self, side: int, manner: Manner) -> list[Message]:
        """The messages that one side's model gets for the last round, which has no reply yet: built here and nowhere else."""
        before = self.turns(side, len(self.rounds) - 1)
        waiting = before.pop().text + "\n" if before and before[-1].role == "client" else ""
        turns = [*before, Turn(role="client", text=waiting + self.rounds[-1].client)]
        return unmarked(messages(turns, manner.instruction, manner.placement))

    def dialog(self, side: int) -> Dialog:
        """The talk with one side as a dialog of the study, as `simulate` reads it; it ends with the counselor."""
        turns = self.turns(side)
        while turns and turns[-1].role == "client":
            turns.pop()
        meta: dict[str, Any] = {
            "arm": self.sides[side],
            "client": "person",
            "profile": self.profile.id if self.profile else "",
            "topic": self.profile.topic if self.profile else "",
            "way": self.way,
            "drawn": sum(round_.replies[side].drawn for round_ in self.rounds if round_.replies),
            "edited": self.edited,
            "guarded": self.guarded,
            "withheld": self.withheld,
            "stopped": sum(round_.replies[side].finish == "stopped" for round_ in self.rounds if round_.replies),
        } | ({"participant": self.participant} if self.participant else {})
        return Dialog(id=self.id, source=self.model, turns=tuple(turns), meta=meta)

    def shown(self) -> dict[str, Any]:
        """The talk as its page shows it: without a hidden arm, and without what was not checked of a reply that is coming."""
        return {
            "id": self.id,
            "model": self.model,
            "way": self.way if len(self.sides) == 2 or not self.hidden else None,
            "sides": [None] * len(self.sides) if self.hidden else list(self.sides),
            "profile": self.profile.id if self.profile else None,
            "vote": asdict(self.vote) if self.vote else None,
            "tally": [] if self.hidden else [self.tally(side) for side in range(len(self.sides))],
            "rounds": [
                {
                    "client": round_.client,
                    "found": list(round_.dangers),
                    "help": list(round_.help),
                    "replies": [
                        {
                            "text": reply.text if reply.finish else reply.visible,
                            "finish": reply.finish,
                            "why": reply.why,
                            "codes": [] if self.hidden else list(reply.codes),
                        }
                        for reply in round_.replies
                    ],
                }
                for round_ in self.rounds
            ],
        }


def begun(model: str, way: Way, offered: Sequence[Arm], profile: Profile | None, participant: str = "") -> Talk | None:
    """A new talk, with the sides of a blind one in random order; None where the server does not offer the arms it needs."""
    sides: tuple[Arm, ...] = ("base", "tuned") if way in ("beside", "blind") else (way,)  # type: ignore[assignment]
    if not set(sides) <= set(offered):
        return None
    if way == "blind" and secrets.randbits(1):
        sides = sides[::-1]
    return Talk(model, way, sides, profile, participant=participant)


@dataclass
class Visitor:
    """Somebody's talks, the latest last."""

    talks: OrderedDict[str, Talk] = field(default_factory=OrderedDict)
    seen: float = field(default_factory=time.monotonic)


class Shelf:
    """All talks, by visitor; a visitor's name is a secret of their browser."""

    def __init__(self) -> None:
        self.visitors: OrderedDict[str, Visitor] = OrderedDict()

    def visitor(self, name: str | None) -> Visitor | None:
        """The visitor with a name, if it is known; also forgets visitors who have been idle for too long."""
        now = time.monotonic()
        while self.visitors and now - next(iter(self.visitors.values())).seen > IDLE_S:
            self.visitors.popitem(last=False)
        visitor = self.visitors.get(name) if name else None
        if visitor is not None and name is not None:
            visitor.seen = now
            self.visitors.move_to_end(name)
        return visitor

    def welcome(self) -> tuple[str, Visitor]:
        """Add a visitor and return their name too; where there are too many, the one idle longest is dropped."""
        while len(self.visitors) >= VISITORS:
            self.visitors.popitem(last=False)
        name = secrets.token_urlsafe(24)
        self.visitors[name] = Visitor()
        return name, self.visitors[name]


def keep(visitor: Visitor, talk: Talk) -> None:
    """Add a talk to a visitor's; where there are too many, the oldest is dropped."""
    while len(visitor.talks) >= TALKS:
        visitor.talks.popitem(last=False)
    visitor.talks[talk.id] = talk
