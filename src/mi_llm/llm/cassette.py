"""The cassette: every answer of a language model, kept once and forever, with what it answers and where it came from.

A cassette is a JSON Lines file that only grows. A line holds one answer, good or failed: `key` (SHA-256 of the request's
canonical JSON), `request`, the raw `response`, the `model` that the service says it was, `usage`, `started`, `ended`, `sdk`,
`prompt` (name and SHA-256 of the prompt's file), `about` (for people), `problem` (what was wrong with the answer, or null) and
`seal`, the SHA-256 of the rest of the line: a line that was edited later is refused. Keys and headers never enter it.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from mi_llm import storage
from mi_llm.llm.answer import DEEPEST, loads, tokens_of, without_thoughts
from mi_llm.problem import Problem, printable

Request = dict[str, Any]
Record = dict[str, Any]
LEVELS = 2 * DEEPEST  # of a record's JSON, in which a response is
Check = Callable[[str], str | None]  # what is wrong with an answer's text, or None


@dataclass(frozen=True)
class Question:
    """One thing to ask: a chat completion's body, what it is about, its prompt's name and hash, how its answer is checked.

    `any_text`: an empty answer, or one that was cut at the token limit, is an answer too.
    """

    about: str
    request: Request
    prompt: Mapping[str, str]
    check: Check
    any_text: bool = False

    @property
    def key(self) -> str:
        """SHA-256 of the request's canonical JSON."""
        return key_of(self.request)


def key_of(request: Request) -> str:
    """SHA-256 of a request's canonical JSON."""
    return hashlib.sha256(storage.dump(request).encode("utf-8")).hexdigest()


def sealed(record: Record) -> Record:
    """The record with its seal."""
    return record | {"seal": seal_of(record)}


def seal_of(record: Record) -> str:
    """SHA-256 of a record's canonical JSON without its seal."""
    return key_of({name: value for name, value in record.items() if name != "seal"})


def text_of(record: Record) -> str:
    """The text of a good answer, without the model's thoughts; the record keeps them."""
    return without_thoughts(record["response"]["choices"][0]["message"]["content"] or "")


def fault(line: bytes) -> str | None:
    """What is wrong with one line of a cassette, or None."""
    try:
        record = loads(line.decode(), LEVELS)
        asked_as, seal = key_of(record["request"]), seal_of(record)
        if record["key"] != asked_as:
            return "the request was edited after recording"
        if record["seal"] != seal:
            return "the answer was edited after recording"
        asked = [part["content"] for part in record["request"]["messages"]]
        texts = [record["about"], record["started"], record["ended"], record["batch"] or "", *asked]
        "".join([*texts, shown(record), line_of(record), storage.dump(record["usage"])])
    except (ValueError, LookupError, TypeError, AttributeError):
        return "not a recorded answer"
    return None


def complete_lines(content: bytes) -> list[bytes]:
    """The complete lines; a last line without an end of line was torn by a crash and does not count."""
    return content[: content.rfind(b"\n") + 1].splitlines()


@dataclass
class Cassette:
    """The recorded answers of one file. If a request has several good answers, the last one counts."""

    path: Path
    records: list[Record] = field(default_factory=list)
    good: dict[str, Record] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> "Cassette":
        """Read a cassette; a missing file is an empty one. Raises Problem for a line that is not as it was recorded."""
        cassette = cls(path)
        cassette.reread()
        return cassette

    def reread(self) -> None:
        """Read the file again, from its beginning."""
        self.records, self.good = [], {}
        for number, line in enumerate(complete_lines(self.path.read_bytes()) if self.path.exists() else [], 1):
            problem = fault(line)
            if problem:
                raise Problem(
                    f"{self.path}, line {number}",
                    problem,
                    "unchanged recorded answers, one JSON object per line",
                    f"restore the file, or delete that line; `mi-llm cassette verify {self.path}` lists all such lines",
                )
            self.take(loads(line.decode(), LEVELS))

    def take(self, record: Record) -> None:
        """Remember one record."""
        self.records.append(record)
        if record["problem"] is None:
            self.good[record["key"]] = record

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Be the only process that adds to the file: another waits here until this one ends, then reads the file again."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        storage.unshare(self.path)
        with self.path.open("ab") as file:
            storage.wait_alone(file.fileno(), f"records into {self.path}")
            self.mend()
            self.reread()
            yield

    def mend(self) -> None:
        """Remove a last line that a crash has torn; a valid one that lacks only its end of line gets it back."""
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end == len(content):
            return
        if fault(content[end:]):
            os.truncate(self.path, end)
        else:
            with self.path.open("ab") as file:
                file.write(b"\n")

    def append(self, records: Sequence[Record]) -> None:
        """Add sealed records and make sure that they are on the disk; on a full disk the file stays as it was."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        storage.unshare(self.path)
        lines = b"".join(storage.dump(record).encode("utf-8") + b"\n" for record in records)
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if self.path.exists():
                os.truncate(self.path, before)
            raise Problem(
                str(self.path),
                f"an answer could not be written ({os.strerror(error.errno or 0)})",
                "a writable folder with free space",
                "free some space and run the same command again; earlier answers are kept",
            ) from error
        for record in records:
            self.take(record)


def verify(path: Path) -> list[str]:
    """Every fault of a cassette, each with its line; an empty list if there is none."""
    content = path.read_bytes()
    lines = complete_lines(content)
    faults = [f"{path}, line {number}: {problem}" for number, line in enumerate(lines, 1) if (problem := fault(line))]
    if content and not content.endswith(b"\n"):
        last = content[content.rfind(b"\n") + 1 :]
        problem = (
            "cut off by a crash; the next recording removes it and requests it again" if fault(last) else "has no end of line"
        )
        faults.append(f"{path}, line {len(lines) + 1}: {problem}")
    return faults


def merge(target: Path, sources: Sequence[Path]) -> int:
    """Add to `target` the records of other cassettes that it does not hold; returns how many were added."""
    cassette = Cassette.open(target)
    with cassette.recording():
        known = {record["seal"] for record in cassette.records}
        new = {
            record["seal"]: record for path in sources for record in Cassette.open(path).records if record["seal"] not in known
        }
        if new:
            cassette.append(list(new.values()))
    return len(new)


def chosen(cassette: Cassette, key: str) -> list[Record]:
    """The records whose key begins with `key`; raises Problem if there is none."""
    records = [record for record in cassette.records if record["key"].startswith(key)]
    if not records:
        raise Problem(
            str(cassette.path), f"no answer with key {key}…", "a key, or its beginning",
            f"`mi-llm cassette ls {cassette.path}` lists them",
        )  # fmt: skip
    return records


def shown(record: Record) -> str:
    """One record for people to read: its subject, request and answer."""
    messages = "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in record["request"]["messages"])
    settings = {name: value for name, value in record["request"].items() if name != "messages"}
    answer = storage.dump(record["response"]) if record["problem"] else text_of(record)
    return printable(
        f"{record['about']}\nkey      {record['key']}\n"
        f"prompt   {record['prompt']['name']} ({record['prompt']['sha256'][:12]}…)\n"
        f"request  {storage.dump(settings)}\nmodel    {record['model']}\nusage    {storage.dump(record['usage'])}\n"
        f"time     {record['started']} to {record['ended']}\nproblem  {record['problem'] or 'none'}\n\n"
        f"{messages}\n\n[answer]\n{answer}"
    )


def line_of(record: Record) -> str:
    """One record as a line of text: key, end, model, subject, state."""
    state = f"failed ({record['problem']})" if record["problem"] else "good"
    line = f"{record['key'][:12]}  {record['ended'][:19]}  {record['model']}  {record['about']}  {state}"
    return printable(line).replace("\n", "\\n")


def export(cassette: Cassette, path: Path) -> None:
    """Write the records as a CSV table for people and spreadsheets."""
    rows = []
    for record in cassette.records:
        sent, received = tokens_of(record["usage"])
        rows.append(
            {
                "key": record["key"],
                "about": record["about"],
                "prompt": record["prompt"]["name"],
                "model": record["model"],
                "request": "\n\n".join(message["content"] for message in record["request"]["messages"]),
                "answer": storage.dump(record["response"]) if record["problem"] else text_of(record),
                "problem": record["problem"] or "",
                "tokens_sent": sent,
                "tokens_received": received,
                "started": record["started"],
                "ended": record["ended"],
            }
        )
    storage.write_table(path, pd.DataFrame(rows))
