"""One protocol for every language model that is asked from outside: request → key → cassette.

A request is the body of an OpenAI chat completion; its key is the SHA-256 of its canonical JSON. A *cassette* is a JSON
Lines file with one line an answer: key, request, raw response, returned model, usage, start, end, SDK version, and what was
wrong with the answer, if anything. `replay` only looks answers up; `record` asks for those that are missing, through the
`openai` client and any compatible base URL, and appends each, fsynced, as it comes. Keys and headers are never written.
"""

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import openai
from tqdm import tqdm

from mi_llm import storage
from mi_llm.problem import Problem

Request = dict[str, Any]
Check = Callable[[str], str | None]  # what is wrong with an answer's text, or None


@dataclass(frozen=True)
class Question:
    """One thing to ask: the request's body, and for people the name of what it is about."""

    about: str
    request: Request

    @property
    def key(self) -> str:
        """SHA-256 of the request's canonical JSON."""
        return hashlib.sha256(storage.dump(self.request).encode("utf-8")).hexdigest()


@dataclass
class Cassette:
    """The recorded answers of one file. Where a request was answered more than once, the last good answer counts."""

    path: Path
    good: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> "Cassette":
        """Read a cassette; a missing file is an empty one, and a last line torn by a crash is cut off."""
        cassette = cls(path)
        if not path.exists():
            return cassette
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with path.open("r+b") as file:
                file.truncate(len(whole))
        for number, line in enumerate(storage.decode(whole, str(path)).splitlines(), 1):
            try:
                record = json.loads(line)
                if record["problem"] is None:
                    cassette.good[record["key"]] = record
            except (json.JSONDecodeError, KeyError, TypeError):
                raise Problem(
                    f"{path}, line {number}",
                    "not a recorded answer",
                    "one JSON object a line with key and response",
                    "restore the file",
                ) from None
        return cassette

    def append(self, record: dict[str, Any]) -> None:
        """Add one answer and make sure that it is on the disk before anything else is asked."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(storage.dump(record).encode("utf-8") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if record["problem"] is None:
            self.good[record["key"]] = record


def text_of(record: Mapping[str, Any]) -> str:
    """The answer's text."""
    return str(record["response"]["choices"][0]["message"]["content"] or "")


def replay(questions: Sequence[Question], cassettes: Sequence[Cassette], how_to_record: str) -> list[dict[str, Any]]:
    """The recorded answers to `questions`, in their order; a missing one is named together with how to record it."""
    answers, missing = [], []
    for question in questions:
        found = next((cassette.good[question.key] for cassette in cassettes if question.key in cassette.good), None)
        if found is None:
            missing.append(question)
        else:
            answers.append(found)
    if missing:
        first = missing[0]
        raise Problem(
            ", ".join(str(cassette.path) for cassette in cassettes),
            f"no recorded answer of {first.request['model']} for {first.about} (key {first.key[:12]}…)"
            + (f" and {len(missing) - 1} others" if len(missing) > 1 else ""),
            "an answer for each request: the request's text, model and settings all count",
            f"undo the change of prompt, model or corpus, or record the answers: {how_to_record}",
        )
    return answers


def record(
    questions: Sequence[Question], cassette: Cassette, *, base_url: str, concurrency: int, attempts: int, check: Check
) -> None:
    """Ask for every question that the cassette cannot answer yet; see `ask`."""
    wanted = [question for question in questions if question.key not in cassette.good]
    key = os.environ.get("OPENAI_API_KEY", "none")  # local servers take any
    failed = asyncio.run(
        ask_all(wanted, cassette, base_url=base_url, key=key, concurrency=concurrency, attempts=attempts, check=check)
    )
    if failed:
        raise Problem(
            str(cassette.path),
            f"{len(failed)} of {len(wanted)} requests have no valid answer; the first is {failed[0]}",
            "a valid answer for each",
            "the good answers are kept: run the same command again to ask for the rest",
        )


async def ask_all(
    wanted: Sequence[Question], cassette: Cassette, *, base_url: str, key: str, concurrency: int, attempts: int, check: Check
) -> list[str]:
    """Ask `concurrency` questions at a time; returns, for each that failed, what and why."""
    failed = []
    gate = asyncio.Semaphore(concurrency)
    async with openai.AsyncOpenAI(base_url=base_url, api_key=key, max_retries=5) as client:

        async def ask(question: Question) -> None:
            """One question, `attempts` times at most: the SDK retries the network, we retry answers that fail the check."""
            problem: str | None = "not asked"
            async with gate:
                for _ in range(attempts):
                    started = datetime.now(UTC)
                    try:
                        response = await client.chat.completions.create(**question.request)
                    except openai.OpenAIError as error:
                        problem = type(error).__name__
                        continue
                    answer = {
                        "key": question.key,
                        "request": question.request,
                        "response": response.model_dump(mode="json", exclude_none=True),
                        "model": response.model,
                        "usage": response.usage.model_dump(mode="json", exclude_none=True) if response.usage else None,
                        "started": started.isoformat(),
                        "ended": datetime.now(UTC).isoformat(),
                        "sdk": openai.__version__,
                    }
                    problem = check(text_of(answer)) if response.choices else "no choice in the response"
                    cassette.append(answer | {"problem": problem})
                    if problem is None:
                        return
            failed.append(f"{question.about}: {problem}")

        with tqdm(total=len(wanted), desc="record", unit="answer") as bar:
            for done in asyncio.as_completed([ask(question) for question in wanted]):
                await done
                bar.update()
    return failed
