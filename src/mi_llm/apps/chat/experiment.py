"""The chat as an instrument of a study with participants: who may take part, what they agree to, and which arm they talk with.

Off unless `mi-llm chat --experiment FILE` names a file. Reads that file; appends to a file of JSON Lines each consent, and each
round once its replies are complete, on the disk before the page goes on. Rounds that the guard answered are not kept.
"""

import hashlib
import os
import random
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from mi_llm import storage
from mi_llm.apps.chat.talks import Talk, Way
from mi_llm.codebook.coding import Text
from mi_llm.problem import Problem

Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Participant = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,40}$")]


class Consent(BaseModel):
    """What a participant agrees to, in both languages; an empty line begins a new paragraph."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    en: Words
    zh: Words


class Experiment(BaseModel):
    """The file: `arms` are dealt out to the `participants` in an order that `seed` shuffles, so that they are equally many."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: str
    arms: tuple[Way, ...] = Field(min_length=1)
    seed: int
    participants: tuple[Participant, ...] = Field(min_length=1)
    consent: Consent

    @property
    def assignment(self) -> dict[str, Way]:
        """Each participant's arm."""
        order = random.Random(self.seed).sample(self.participants, len(self.participants))
        return {participant: self.arms[index % len(self.arms)] for index, participant in enumerate(order)}

    @property
    def text(self) -> Text:
        """The consent as the page's words."""
        return Text(self.consent.en, self.consent.zh)


def read(path: Path) -> Experiment:
    """Read an experiment's file; raises Problem where it is not as it should be."""
    try:
        experiment = Experiment.model_validate(storage.read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Problem(f"{path}, {where}", first["msg"], "model, arms, seed, participants, consent", "correct the file") from None
    if len(set(experiment.participants)) < len(experiment.participants):
        raise Problem(f"{path}, participants", "one twice", "each once", "remove one of the two")
    return experiment


class Record:
    """What is kept of an experiment; one process and one thread adds to the file at a time."""

    def __init__(self, experiment: Experiment, path: Path) -> None:
        """Open the file; raises Problem if it cannot be written."""
        self.experiment, self.path = experiment, path
        self.lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            storage.wait_alone(self.file, f"adds to {path}")
            if (size := os.fstat(self.file).st_size) and os.pread(self.file, 1, size - 1) != b"\n":
                os.write(self.file, b"\n")  # after a line that a crash tore
        except OSError as error:
            raise Problem(str(path), f"cannot be written ({error.strerror})", "a file", "choose another --votes") from error

    def agreed(self, participant: str, tongue: str) -> None:
        """Keep that a participant agreed, and to which text; raises OSError if that fails."""
        text = getattr(self.experiment.consent, tongue)
        self.add({
            "kind": "consent", "participant": participant, "arm": self.experiment.assignment[participant], "language": tongue,
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        })  # fmt: skip

    def said(self, talk: Talk) -> dict[str, Any]:
        """The last round of a talk with its complete replies, to be kept."""
        last = talk.rounds[-1]
        return {
            "kind": "round", "participant": talk.participant, "talk": talk.id, "model": talk.model, "way": talk.way,
            "round": len(talk.rounds), "edited": talk.edited, "client": last.client,
            "replies": [
                {"arm": arm, "text": reply.text, "finish": reply.finish, "why": reply.why, "drawn": reply.drawn}
                for arm, reply in zip(talk.sides, last.replies, strict=True)
            ],
        }  # fmt: skip

    def add(self, line: dict[str, Any]) -> None:
        """Put a line on the disk, with the time; raises OSError if that fails."""
        content = storage.dump(line | {"time": datetime.now(UTC).isoformat(timespec="seconds")}).encode("utf-8") + b"\n"
        with self.lock:
            if os.write(self.file, content) != len(content):
                raise OSError("the disk is full")
            os.fsync(self.file)

    def close(self) -> None:
        """Close the file."""
        os.close(self.file)
