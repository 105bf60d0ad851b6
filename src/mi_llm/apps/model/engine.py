"""The replies of one model, written together: chats join and leave at every step, base and tuned ones from one loaded base.

A thread of its own reads the prompts that join, computes the next token of every open reply in one pass, and hands the text out.
The passes are those of stage `respond` (`engine/branching.py`): in float32 a reply equals the one of `respond`, whatever else is
in the batch. The adapter's output counts for the tuned arm's rows only, so both arms go through the model in one pass.
"""

import asyncio
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedTokenizerBase

from mi_llm.apps.model.reply_text import ReplyText
from mi_llm.engine.branching import Branching, Opening, Plan, Step, Talk, drawn

READ_AT_ONCE = 2048  # prompt tokens that may join in one step: open replies wait for them
Finish = Literal["stop", "length", "left", "late", "closing", "failed"]


class Full(Exception):  # noqa: N818 — a state, not a fault
    """The queue is full."""


class Closing(Exception):  # noqa: N818
    """The server is shutting down and takes no more replies."""


@dataclass(frozen=True)
class Asked:
    """A request: an arm's reply to a prompt of token ids, of at most `limit` tokens, by `deadline` (monotonic seconds).

    With `temperature` 0 each token is the likeliest; else it is drawn with random numbers from `seed`, as `respond` draws.
    """

    prompt: list[int]
    tuned: bool
    limit: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop: tuple[str, ...]
    deadline: float


@dataclass(frozen=True)
class Piece:
    """The news of a reply after one step: more text, and why the reply has ended, if it has."""

    text: str
    finish: Finish | None = None


class Reply:
    """A reply that waits or is being written; `pieces` holds what its reader has not fetched yet."""

    def __init__(self, asked: Asked, tokenizer: PreTrainedTokenizerBase) -> None:
        self.asked = asked
        self.text = ReplyText(tokenizer, asked.stop)
        self.chance = np.random.default_rng(asked.seed).random(asked.limit, np.float32)
        self.pieces = asyncio.Queue[Piece]()
        self.left = False


Told = list[tuple[Reply, Piece]]


class Arms(Branching):
    """Passes over rows of both arms: the adapter's output is kept for the tuned arm's tokens and dropped for the base's."""

    def __init__(self, model: torch.nn.Module, stops: Sequence[int], rows: int, replies: dict[int, Reply]) -> None:
        super().__init__(model, stops, rows, 0, self.chosen)  # each reply has a limit of its own
        self.replies = replies
        self.adapted, self.adding = [module for module in model.modules() if isinstance(module, LoraLayer)], True
        self.tuned = torch.empty(0, dtype=torch.bool)
        for module in self.adapted:
            for added in module.lora_B.values():
                added.register_forward_hook(lambda _, __, out: out * self.tuned)

    def run(self, row: Any, places: Any, of: Opening | Step, keep: Any) -> torch.Tensor:
        """One pass over one row, as `Branching.run`."""
        parts = [(of.talk, of.sizes)] if isinstance(of, Opening) else [(talk, [1] * len(talk.indices)) for talk in of.talks]
        rows = [pair for talk, sizes in parts for pair in zip(talk.indices, sizes, strict=True)]
        tuned = [self.replies[number].asked.tuned for number, size in rows for _ in range(size)]
        self.tuned = self.tensor(tuned)[None, :, None]
        if self.adding != any(tuned):  # where no row needs it, the adapter's work is saved
            self.adding = any(tuned)
            for module in self.adapted:
                module.enable_adapters(self.adding)
        return super().run(row, places, of, keep)

    def chosen(self, logits: torch.Tensor, numbers: Sequence[int], counts: Sequence[int]) -> torch.Tensor:
        """The next token of each reply, likeliest or drawn; `numbers` are the replies' numbers, `counts` their tokens so far."""
        tokens = logits.argmax(-1)
        requests = [self.replies[number].asked for number in numbers]
        for top_k in {request.top_k for request in requests if request.temperature}:
            rows = [row for row, request in enumerate(requests) if request.temperature and request.top_k == top_k]
            temperature, top_p, chance = (
                torch.tensor(values, dtype=torch.float32, device=self.device)
                for values in (
                    [requests[row].temperature for row in rows],
                    [requests[row].top_p for row in rows],
                    [self.replies[numbers[row]].chance[counts[row]] for row in rows],
                )
            )
            tokens[rows] = drawn(logits[rows], temperature, top_k, top_p, chance)
        return tokens


class Engine:
    """One loaded model and the replies it is writing, at most `rows` at a time, while at most `queue` more wait.

    `tell` is called in the engine's thread with the news of the replies after a step. `read` and `written` count tokens.
    """

    def __init__(
        self, model: torch.nn.Module, stops: Sequence[int], *, rows: int, queue: int, tell: Callable[[Told], None]
    ) -> None:
        self.running: dict[int, Reply] = {}
        self.waiting = deque[Reply]()
        self.passes = Arms(model, stops, rows, self.running)
        self.queue, self.tell = queue, tell
        self.written = 0
        self.talks: dict[int, Talk] = {}  # by the size of the prompts: rows of one talk are stored as long as the longest
        self.numbers = count()
        self.changed = threading.Condition()
        self.last: float | None = None  # once the server is shutting down: when the last reply must end (monotonic seconds)
        self.closed = False
        self.thread = threading.Thread(target=self._work, name="replies", daemon=True)
        self.thread.start()

    @property
    def read(self) -> int:
        """Prompt tokens read so far."""
        return self.passes.prefilled

    @property
    def open(self) -> tuple[int, int]:
        """How many replies wait, and how many are being written; together never more than `rows` and `queue`."""
        with self.changed:
            return len(self.waiting), len(self.running)

    def ask(self, reply: Reply) -> None:
        """Put a reply into the queue; raises Full or Closing."""
        with self.changed:
            if self.last is not None:
                raise Closing
            if len(self.waiting) + len(self.running) >= self.passes.most + self.queue:
                raise Full
            self.waiting.append(reply)
            self.changed.notify()

    def leave(self, reply: Reply) -> None:
        """Drop a reply that nobody reads any longer: from the queue now, or from the batch at the next step."""
        with self.changed:
            reply.left = True
            if reply in self.waiting:
                self.waiting.remove(reply)

    def end(self, last: float) -> None:
        """Take no more replies, and finish those that are here by `last` (monotonic seconds); safe in a signal handler."""
        self.last = last

    def close(self) -> None:
        """End the thread; what is still being written is dropped."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()

    def _work(self) -> None:
        while self._awake():
            try:
                self._turn()
            except Exception as error:  # whatever it is, the next replies must not wait for ever
                self._fail(error)

    def _awake(self) -> bool:
        """Wait until there is something to do; False when the server ends."""
        with self.changed:
            while not (self.waiting or self.running or self.closed):
                self.changed.wait()
            return not self.closed

    def _turn(self) -> None:
        """One step: let replies join, hand out the last step's tokens, remove the replies that ended, compute the next tokens."""
        told: Told = []
        try:
            self._open(self._joining(told))
            for size, talk in list(self.talks.items()):
                self._hear(talk, told)
                if not talk.indices:
                    del self.talks[size]
        finally:
            self.tell(told)
        if self.talks:
            self.passes.step(list(self.talks.values()))

    def _joining(self, told: Told) -> list[int]:
        """Take from the queue the replies that fit, and end those that waited too long; returns the numbers of the former."""
        joining: list[int] = []
        read = 0
        with self.changed:
            for reply in list(self.waiting):
                if finish := self._overdue(reply):
                    self.waiting.remove(reply)
                    told.append((reply, Piece("", finish)))
            while self.waiting and len(self.running) < self.passes.most:
                read += len(self.waiting[0].asked.prompt)
                if joining and read > READ_AT_ONCE:
                    break
                joining.append(next(self.numbers))
                self.running[joining[-1]] = self.waiting.popleft()
        return joining

    def _overdue(self, reply: Reply) -> Literal["late", "closing"] | None:
        now = time.monotonic()
        if self.last is not None and now > self.last:
            return "closing"
        return "late" if now > reply.asked.deadline else None

    def _open(self, joining: Sequence[int]) -> None:
        """Read the prompts that join, those of similar length in one pass."""
        alike: dict[int, list[int]] = {}
        for number in joining:
            alike.setdefault(len(self.running[number].asked.prompt).bit_length(), []).append(number)
        for size, numbers in alike.items():
            prompts = [self.running[number].asked.prompt for number in numbers]
            talk = self.passes.opened(Plan(tuple(numbers), [], [0] * len(numbers), prompts))
            if size in self.talks:
                self.talks[size].join(talk)
            else:
                self.talks[size] = talk

    def _hear(self, talk: Talk, told: Told) -> None:
        """Add each reply's last token to its text, and remove the replies that have ended."""
        going = []
        for row, (number, tokens) in enumerate(zip(talk.indices, talk.replies, strict=True)):
            reply = self.running[number]
            piece = self._heard(reply, tokens[-1])
            if piece.text or piece.finish:
                told.append((reply, piece))
            if piece.finish:
                del self.running[number]
            else:
                going.append(row)
        self.written += len(talk.indices)
        if len(going) < len(talk.indices):
            talk.keep(going)

    def _heard(self, reply: Reply, token: int) -> Piece:
        if reply.left:
            return Piece("", "left")
        if token in self.passes.stops:
            return Piece(reply.text.end(), "stop")
        text = reply.text.add(token)
        if reply.text.stopped:
            return Piece(text, "stop")
        if len(reply.text.ids) == reply.asked.limit:
            text += reply.text.end()
            return Piece(text, "stop" if reply.text.stopped else "length")
        return Piece(text, self._overdue(reply))

    def _fail(self, error: Exception) -> None:
        """End all open replies as failed, and log why without the error's message, which may hold text."""
        frame = traceback.extract_tb(error.__traceback__)[-1]
        print(f"replies failed: {type(error).__name__} at {frame.filename}:{frame.lineno}", file=sys.stderr, flush=True)
        failed: Told = [(reply, Piece("", "failed")) for reply in self.running.values()]
        self.talks.clear()
        self.running.clear()
        self.tell(failed)
