"""A round's replies as they come: one task per side, each checked before it is shown, and one stream of events for the page.

The last columns of a reply are held back until more has come, so that what `guard.fault` finds is not shown for a moment first.
The events go as server-sent events whose data is JSON in ASCII: no text of a model or a visitor can break out of them.
"""

import asyncio
import json
import secrets
import unicodedata
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from mi_llm.apps.chat import codes, guard
from mi_llm.apps.chat.counselors import Counselors, Manner, Unanswered
from mi_llm.apps.chat.talks import Finish, Reply, Talk
from mi_llm.llm.answer import without_thoughts

HELD = 24  # columns; an ideograph takes two
STEP = 4  # characters that are checked and shown together
LOOKED = 120  # characters before them that are checked with them; the whole reply is checked at the end
ALIVE_S = 5.0  # seconds without an event after which a comment is sent: it fails if the page has left


class Answering:
    """The replies of a talk's last round under way."""

    def __init__(self, counselors: Counselors, talk: Talk, manner: Manner, *, drawn: bool) -> None:
        self.counselors, self.talk, self.manner = counselors, talk, manner
        self.replies = [Reply(drawn=drawn) for _ in talk.sides]
        talk.rounds[-1].replies = self.replies
        self.queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.tasks = [asyncio.create_task(self._speak(side)) for side in range(len(talk.sides))]
        self.endings = [asyncio.create_task(self._ended(side, task)) for side, task in enumerate(self.tasks)]

    async def _speak(self, side: int) -> Finish:
        """Let one side reply; returns how it ended, which the page is told only after the whole reply was checked."""
        reply, raw = self.replies[side], ""
        seed = secrets.randbits(31) if reply.drawn else None
        asked = self.talk.asked(side, self.manner)
        async with aclosing(self.counselors.reply(self.talk.model, self.talk.sides[side], asked, self.manner, seed)) as pieces:
            async for piece, ended in pieces:
                raw += piece.replace("\0", "")
                reply.text = without_thoughts(raw)
                if ended:
                    return "length" if ended == "length" else "stop"
                if not reply.text.startswith(reply.visible):  # what was shown were thoughts: only their end has a tag
                    reply.visible = ""
                    self.queue.put_nowait({"side": side, "text": "", "whole": True})
                shown, ready = len(reply.visible), showable(reply.text)
                if ready < shown + STEP:
                    continue
                if await asyncio.to_thread(faulty, reply.text, shown, in_danger=self.talk.in_danger):
                    break
                self.queue.put_nowait({"side": side, "text": reply.text[shown:ready]})
                reply.visible = reply.text[:ready]
        return "withheld"

    async def _ended(self, side: int, task: asyncio.Task[Finish]) -> None:
        """Once a side has ended, tell the page how, and its final text: nothing that must not be shown."""
        await asyncio.wait([task])
        reply = self.replies[side]
        finish: Finish
        why: str
        finish, why = "stopped", ""
        if not task.cancelled():
            error = task.exception()
            if isinstance(error, Unanswered):
                finish, why = "failed", error.why
            elif error is not None:
                finish, why = "failed", "failed"
            elif not reply.text.strip():
                finish, why = "failed", "silent"
            else:
                finish = task.result()
        if fault := await asyncio.to_thread(guard.fault, reply.text, in_danger=self.talk.in_danger):
            reply.text, finish, why = "", "withheld", fault
            self.talk.withheld += 1
        if finish == "stop":  # half a reply has no code
            reply.codes = await asyncio.to_thread(codes.codes, self.talk.rounds[-1].client, reply.text.strip())
        reply.text, reply.finish, reply.why = reply.text.strip(), finish, why  # only now: the talk waits for `finish`
        event = {"side": side, "text": reply.text, "finish": reply.finish, "why": reply.why}
        if not self.talk.hidden:
            event |= {"codes": list(reply.codes), "tally": self.talk.tally(side)}
        self.queue.put_nowait(event)

    @property
    def under_way(self) -> int:
        """How many sides are still speaking or being checked."""
        return sum(not task.done() for task in self.endings)

    def stop(self) -> None:
        """Cancel the replies that are still coming; the text that has come stays."""
        for task in self.tasks:
            task.cancel()

    async def events(self) -> AsyncIterator[str]:
        """The events until every side has ended; ends the work if the reader leaves."""
        try:
            coming = len(self.tasks)
            while coming:
                try:
                    event = await asyncio.wait_for(self.queue.get(), ALIVE_S)
                except TimeoutError:
                    yield ":\n\n"
                    continue
                coming -= "finish" in event
                yield f"data: {json.dumps(event)}\n\n"
        finally:
            self.stop()


def faulty(text: str, shown: int, *, in_danger: bool) -> bool:
    """Whether what has come of a reply must not be shown: the new part with what stands before it, and the whole."""
    parts = (text[max(0, shown - LOOKED) :], text)
    return all(guard.fault(part, in_danger=in_danger, coming=True) is not None for part in parts)


def showable(text: str) -> int:
    """How many characters of a reply that goes on may be shown: all but the last `HELD` columns."""
    held, end = 0, len(text)
    while end and held < HELD:
        end -= 1
        held += 2 if unicodedata.east_asian_width(text[end]) in "WF" else 1
    return end
