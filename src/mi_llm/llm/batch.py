"""Recording through the OpenAI Batch API: the same requests, answered within a day, at half the price.

The service keeps the state: a batch carries the hash of the keys that it is for, so that a run that was stopped finds its
batches again. What they answered is imported, what is under way is waited for, and only what is still missing is submitted, and
can succeed.
"""

import hashlib
import io
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from tempfile import TemporaryFile
from typing import Any

import openai
from openai.types import Batch
from tqdm import tqdm

from mi_llm import storage
from mi_llm.llm import answer, wire
from mi_llm.llm.cassette import Cassette, Question, Record
from mi_llm.llm.record import Ledger, clean, ledger_of, reason, record_of
from mi_llm.problem import Problem
from mi_llm.study import Llm

ENDED = ("completed", "failed", "expired", "cancelled")
HOPELESS = ("400: ", "413: ", "422: ")  # the request itself is refused
MOST = 50_000  # requests per batch: the service's limit
SHORTEST, LONGEST = 1.0, 60.0  # seconds between two requests for a batch's status


def record(options: Llm, questions: Sequence[Question], cassette: Cassette, title: str) -> None:
    """Have every question answered; raises Problem, after keeping what came, if any has no valid answer."""
    done: set[str] = set()
    submitted = 0
    try:
        with wire.blocking(options.base_url, options.network_retries) as client:
            known = list(client.with_options(max_retries=1).batches.list(limit=100))[::-1]  # oldest first
            while missing := [asked for asked in questions if asked.key not in {*cassette.good, *hopeless(cassette)}]:
                label = label_of(missing[:MOST])
                batch = next((batch for batch in known if useful(batch, label) and batch.id not in done), None)
                if batch is None:
                    if submitted == options.attempts:
                        break
                    within(ledger_of(options, cassette), missing, cassette)
                    batch = submit(client, missing[:MOST], label)
                    submitted += 1
                done.add(batch.id)
                take(client, wait(client, batch, title), questions, cassette)
    except openai.OpenAIError as error:
        raise Problem(
            options.base_url, reason(error), "a service with the Batch API",
            "fix the cause and run the same command again, or use --mode record",
        ) from None  # fmt: skip
    missing = [asked for asked in questions if asked.key not in cassette.good]
    if missing:
        last = {known["key"]: known["problem"] for known in cassette.records}
        (commonest, count), *_ = Counter(last.get(asked.key) or "no answer came" for asked in missing).most_common()
        raise Problem(
            str(cassette.path),
            f"{len(missing)} of {len(questions)} requests have no valid answer after {submitted} batches,"
            f" {missing[0].about} among them; {count} of them: {commonest}",
            "a valid answer for each",
            "the valid answers are kept: run the same command again to ask for the rest; a setting that the service refuses can"
            " be left out with llm.extra_body",
        )


def label_of(questions: Sequence[Question]) -> str:
    """The name by which a batch is found again: only who wants the same answers finds it."""
    return hashlib.sha256("\n".join(sorted(asked.key for asked in questions)).encode()).hexdigest()


def hopeless(cassette: Cassette) -> set[str]:
    """The keys of requests that the service refused as they are: it would again."""
    return {known["key"] for known in cassette.records if known["batch"] and str(known["problem"]).startswith(HOPELESS)}


def useful(batch: Batch, label: str) -> bool:
    """Whether a batch has, or will have, the answers of a label."""
    ended = batch.status in ENDED and not (batch.output_file_id or batch.error_file_id)
    return (batch.metadata or {}).get("mi-llm") == label and not ended


def within(ledger: Ledger, missing: Sequence[Question], cassette: Cassette) -> None:
    """Refuse a batch that the budget does not allow: the service would answer all of it."""
    for asked in missing:
        ledger.expect(asked, ledger.options.batch_discount)
        if spent := ledger.exhausted():
            raise Problem(
                str(cassette.path),
                f"a batch of {len(missing)} more requests could exceed the budget ({spent})",
                "a batch within llm.budget",
                "raise the budget in the parameters",
            )
        ledger.requests += 1


def submit(client: openai.OpenAI, questions: Sequence[Question], label: str) -> Batch:
    """Upload the requests, one per line under its key, and start the batch."""
    lines = [
        storage.dump({"custom_id": asked.key, "method": "POST", "url": "/v1/chat/completions", "body": asked.request})
        for asked in questions
    ]
    upload = client.files.create(file=("requests.jsonl", io.BytesIO("\n".join(lines).encode("utf-8"))), purpose="batch")
    return client.batches.create(
        input_file_id=upload.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"mi-llm": label}
    )


def wait(client: openai.OpenAI, batch: Batch, title: str) -> Batch:
    """The batch when it has ended; it goes on at the service when this process is stopped."""
    pause = SHORTEST
    with tqdm(desc=f"{title}, batch {batch.id}", unit="answer", disable=batch.status in ENDED) as bar:
        while batch.status not in ENDED:
            time.sleep(pause)
            pause = min(pause * 1.5, LONGEST)
            batch = client.batches.retrieve(batch.id)
            if batch.request_counts:
                bar.total = batch.request_counts.total
                bar.n = batch.request_counts.completed
                bar.set_postfix_str(batch.status)
    return batch


def take(client: openai.OpenAI, batch: Batch, questions: Sequence[Question], cassette: Cassette) -> None:
    """Record what a batch has on those of the questions that still lack an answer, each once; raises Problem if it has nothing.

    A line that cannot be read is named and left out.
    """
    faults = [fault.message or str(fault.code) for fault in (batch.errors and batch.errors.data) or []]
    if faults and not (batch.output_file_id or batch.error_file_id):
        raise Problem(
            f"batch {batch.id}", clean(f"{batch.status}: {Counter(faults).most_common()[0][0]}"), "a batch without errors",
            "fix the cause and run the same command again: recorded answers are not requested again",
        )  # fmt: skip
    wanted = {asked.key: asked for asked in questions if asked.key not in cassette.good}
    imported = {(known["key"], known["batch"]) for known in cassette.records}
    started = datetime.fromtimestamp(batch.created_at, UTC)
    ended = datetime.fromtimestamp(batch.completed_at or batch.created_at, UTC)
    new: list[Record] = []
    unread: list[str] = []
    for file in filter(None, (batch.output_file_id, batch.error_file_id)):
        for number, line in enumerate(lines_of(client, file), 1):
            try:
                key, status, body = read(line)
            except (ValueError, LookupError, TypeError, AttributeError):
                unread += [f"line {number} of {file}"] if line.strip() else []
                continue
            asked = wanted.pop(key, None)
            if asked is None:
                continue
            refusal = None if status == 200 else f"{status or 'no answer'}: {said(body)}"
            if (key, batch.id) not in imported:
                text = json.dumps(body, ensure_ascii=False)
                new.append(record_of(asked, text, started, ended, batch=batch.id, refusal=refusal))
    if new:
        cassette.append(new)
    if unread:
        print(
            f"batch {batch.id}: {len(unread)} lines are no answers, {unread[0]} among them; the others are kept", file=sys.stderr
        )


def read(line: bytes) -> tuple[str, int | None, Any]:
    """One line of a batch's file: key, HTTP status, and the answer's body or the error. Raises ValueError, TypeError and more."""
    result = answer.loads(line.decode())
    key, response = result["custom_id"], result.get("response") or {}
    if not isinstance(key, str):
        raise TypeError("a key is text")
    status = response.get("status_code")
    return key, status if isinstance(status, int) else None, response.get("body") or result.get("error")


def said(body: Any) -> str:
    """The service's words in an error's body."""
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else json.dumps(error, ensure_ascii=False)


def lines_of(client: openai.OpenAI, file: str) -> Iterator[bytes]:
    """The lines of a file at the service, which may be larger than memory."""
    with TemporaryFile() as content, client.files.with_streaming_response.content(file) as response:
        for piece in response.iter_bytes():
            content.write(piece)
        content.seek(0)
        yield from content
