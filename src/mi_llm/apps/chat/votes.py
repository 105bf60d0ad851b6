"""The votes of blind comparisons: an append-only file of JSON Lines, one line per vote, on the disk before it is confirmed.

A vote has its time, the model, the arm of each side, the preferred side in all and on each criterion, the reason, and the number
of rounds; the talk itself only if the voter agreed to keep it. A vote that was undone is followed by a line that says so: of a
talk's lines, the last counts.
"""

import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mi_llm import storage
from mi_llm.apps.chat.talks import Talk
from mi_llm.problem import Problem

BEGIN = b'{"choice": '  # how each line begins: its keys are sorted
UNDONE = "undone"


class Votes:
    """The file of votes; one process adds to it at a time, and one thread of it."""

    def __init__(self, path: Path) -> None:
        """Open the file and repair what a crash left; raises Problem if it cannot be written or holds something else."""
        self.path = path
        self.lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            storage.wait_alone(self.file, f"adds votes to {path}")
            self.mend()
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        except OSError as error:
            raise Problem(
                str(path), f"cannot be written ({error.strerror})", "a file for the votes", "choose another --votes"
            ) from error

    def mend(self) -> None:
        """Complete a last vote that lacks only its newline, cut an incomplete one; raises Problem at a file of something else."""
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        first, last = content[:end].partition(b"\n")[0], content[end:]
        complete = is_vote(last)
        written = last.rstrip(b"\0")  # what a power cut leaves of a line may end in zeros
        if (end and not is_vote(first)) or not (complete or written.startswith(BEGIN[: len(written)])):
            self.close()
            raise Problem(str(self.path), "lines that are no votes", "a file of votes, or none yet", "choose another --votes")
        if complete:
            os.write(self.file, b"\n")
        elif last:
            os.truncate(self.file, end)

    def add(self, talk: Talk, *, with_text: bool) -> None:
        """Put a talk's vote on the disk, or that it was undone; raises OSError if that fails, and then leaves nothing of it."""
        line = storage.dump(vote(talk, with_text=with_text)).encode("utf-8") + b"\n"
        with self.lock:  # so that what is cut below is this vote
            before = os.fstat(self.file).st_size
            try:
                if os.write(self.file, line) != len(line):
                    raise OSError("the disk is full")
                os.fsync(self.file)
            except OSError:
                os.truncate(self.file, before)
                raise

    def close(self) -> None:
        """Close the file."""
        os.close(self.file)


def is_vote(line: bytes) -> bool:
    """Whether a line is a whole vote."""
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and {"talk", "choice", "left", "right"} <= record.keys()


def vote(talk: Talk, *, with_text: bool) -> dict[str, Any]:
    """A talk's vote as it is kept; a talk without one has undone it."""
    left, right = talk.sides
    choice = talk.vote.choice if talk.vote else UNDONE
    record: dict[str, Any] = {
        "talk": talk.id,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": talk.model,
        "left": left,
        "right": right,
        "choice": choice,
        "preferred": {"left": left, "right": right}.get(choice, choice),
        "rounds": len(talk.rounds),
        "profile": talk.profile.id if talk.profile else "",
    }
    if talk.vote:
        record |= {"criteria": dict(talk.vote.criteria), "reason": talk.vote.reason}
    if talk.participant:
        record["participant"] = talk.participant
    if with_text:
        record["dialogs"] = [talk.dialog(side).model_dump() for side in range(2)]
    return record
