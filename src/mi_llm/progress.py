"""How far work is: a line for each stage of a run, and logs in which a bar's states are lines.

A terminal shows a bar that returns to the beginning of its line. A file or a CI log would keep all its states in one long line:
there each state becomes a line (`cli.py` asks tqdm for one every half minute).
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

SECONDS = {  # of a stage of the miniature on two CPU cores, by the times at which a run wrote its outputs
    "finetune": 49.0, "respond": 14.0, "simulate": 20.0, "score": 6.0, "blind": 6.0, "report": 8.0,
}  # fmt: skip
OTHERS = 2.0  # most of the others: the start of Python
PRIOR = 0.1  # the share of a run after which its own pace counts as much as the expected one
WIDTH = 24  # characters of a run's bar


class Lines:
    """A stream on which a return to the beginning of a line begins the next line; everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.begun = stream, False

    def write(self, text: str) -> int:
        """Write a text; an empty line in place of a bar is left out."""
        first, *states = text.replace("\r\n", "\n").split("\r")
        self._put(first)
        for state in states:
            if self.begun:
                self._put("\n")
            self._put(state.rstrip(" "))
        return len(text)

    def _put(self, text: str) -> None:
        if text:
            self.stream.write(text)
            self.begun = not text.endswith("\n")

    def __getattr__(self, name: str) -> Any:
        """Whatever else a stream can do."""
        return getattr(self.stream, name)


class Stages(logging.Handler):
    """Says, whenever DVC begins a stage, which of how many it is and about how long the rest takes.

    `plan` are the stages as DVC addresses them, in its order; `seconds` is what running all of them is expected to take. What DVC
    says of a stage comes as its log's records, whose text begins as in `DONE` and `BEGUN`.
    """

    BEGUN, DONE = ("Running stage",), ("Stage '%s' didn't change", "'%s' didn't change", "Stage '%s' is cached")

    def __init__(self, plan: Sequence[str], seconds: float, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.INFO)
        self.plan, self.seconds, self.stream, self.clock = list(plan), seconds, stream, clock
        self.left, self.ran = list(plan), 0.0  # the stages still to come, and the expected seconds of those that were run
        self.running: tuple[str, float] | None = None  # the stage under way, and when it began
        self.spent = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of one record of DVC's log."""
        name = str(record.args[0]) if isinstance(record.args, tuple) and record.args else ""
        if name not in self.left or not str(record.msg).startswith((*self.BEGUN, *self.DONE)):
            return
        if self.running:
            before, since = self.running
            self.spent += self.clock() - since
            self.ran += expected(before)
        self.running = (name, self.clock()) if str(record.msg).startswith(self.BEGUN) else None
        if self.running:
            self.stream.write(f"\n{self.line(name)}\n")
            self.stream.flush()
        self.left.remove(name)

    def line(self, name: str) -> str:
        """The line for a stage that begins."""
        done = len(self.plan) - len(self.left)
        filled = round(WIDTH * done / len(self.plan))
        bar = f"[{'#' * filled}{'-' * (WIDTH - filled)}]"
        return f"{bar} stage {done + 1} of {len(self.plan)}, {name.rpartition(':')[2]}; {self.remaining()} left"

    def remaining(self) -> str:
        """About how long the stages that are left take, at a pace between the expected one and that of this run."""
        whole = sum(map(expected, self.plan))
        prior = PRIOR * whole
        pace = (self.seconds / whole * prior + self.spent) / (prior + self.ran)
        minutes = pace * sum(map(expected, self.left)) / 60
        if minutes < 1:
            return "less than a minute"
        return f"about {minutes:.0f} min" if minutes < 90 else f"about {minutes / 60:.0f} h"


def expected(name: str) -> float:
    """The seconds of a stage, as DVC addresses it, in the miniature: they tell how the time of any run is divided."""
    return SECONDS.get(name.rpartition(":")[2].partition("@")[0], OTHERS)
