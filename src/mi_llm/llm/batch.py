"""Recording through the OpenAI Batch API: the same requests, answered within a day, at half the price.

The service keeps the state: a batch carries the name of the cassette that it is for, so that a run that was stopped finds its
batches again. What they answered is imported, what is under way is waited for, and only what is still missing is submitted.
"""

import io
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import openai
from openai.types import Batch
from tqdm import tqdm

from mi_llm import storage
from mi_llm.llm import wire
from mi_llm.llm.cassette import Cassette, Question
from mi_llm.llm.record import Ledger, ledger_of, reason, record_of
from mi_llm.problem import Problem
from mi_llm.study import Llm

ENDED = ("completed", "failed", "expired", "cancelled")
MOST = 50_000  # requests per batch: the service's limit
SHORTEST, LONGEST = 1.0, 60.0  # seconds between two requests for a batch's status


def record(options: Llm, questions: Sequence[Question], cassette: Cassette, title: str) -> None:
    """Have every question answered; raises Problem, after keeping what came, if any has no valid answer."""
    label = cassette.path.parent.as_posix()
    submitted = 0
    try:
        with openai.OpenAI(base_url=options.base_url, api_key=wire.api_key(), max_retries=options.network_retries) as client:
            while True:
                for batch in ours(client, label):
                    take(client, wait(client, batch, title), questions, cassette)
                missing = [asked for asked in questions if asked.key not in cassette.good]
                if not missing:
                    return
                if submitted == options.attempts:
                    break
                within(ledger_of(options, cassette), missing, cassette)
                submit(client, missing[:MOST], label)
                submitted += 1
    except openai.OpenAIError as error:
        raise Problem(
            options.base_url, reason(error), "a service with the Batch API",
            "fix the cause and run the same command again, or use --mode record",
        ) from None  # fmt: skip
    raise Problem(
        str(cassette.path),
        f"{len(missing)} of {len(questions)} requests have no valid answer after {submitted} batches,"
        f" {missing[0].about} among them",
        "a valid answer for each",
        "the valid answers are kept: run the same command again to ask for the rest",
    )


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


def ours(client: openai.OpenAI, label: str) -> list[Batch]:
    """The batches that were submitted for a cassette, oldest first."""
    return [batch for batch in client.batches.list(limit=100) if (batch.metadata or {}).get("mi-llm") == label][::-1]


def submit(client: openai.OpenAI, questions: Sequence[Question], label: str) -> None:
    """Upload the requests, one per line under its key, and start the batch."""
    lines = [
        storage.dump({"custom_id": asked.key, "method": "POST", "url": "/v1/chat/completions", "body": asked.request})
        for asked in questions
    ]
    upload = client.files.create(file=("requests.jsonl", io.BytesIO("\n".join(lines).encode("utf-8"))), purpose="batch")
    client.batches.create(
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
    """Record a batch's answers to those of the questions that still lack one, each answer once."""
    if batch.output_file_id is None:
        return
    asked_by_key = {asked.key: asked for asked in questions if asked.key not in cassette.good}
    imported = {(known["key"], known["batch"]) for known in cassette.records}
    ended = datetime.fromtimestamp(batch.completed_at or batch.created_at, UTC)
    new = []
    for line in client.files.content(batch.output_file_id).content.splitlines():
        result = json.loads(line)
        asked = asked_by_key.get(result["custom_id"])
        if asked and (asked.key, batch.id) not in imported and (result.get("response") or {}).get("status_code") == 200:
            body = json.dumps(result["response"]["body"], ensure_ascii=False)
            new.append(record_of(asked, body, datetime.fromtimestamp(batch.created_at, UTC), ended, batch.id))
    if new:
        cassette.append(new)
