"""Recording: ask a model for answers, through the `openai` client and any compatible base URL, and keep each as it comes.

The SDK's own retries do the network (Retry-After honored); ours, bounded, happen only when an answer fails its check, and
failed answers are kept too. Every answer is on the disk before the next question takes its turn. The API key comes from
OPENAI_API_KEY and is written nowhere, not even where a server repeats it.
"""

import asyncio
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from typing import Any

import openai
import tiktoken
from tqdm import tqdm

from mi_llm.llm.cassette import Cassette, Question, Record, sealed
from mi_llm.problem import Problem
from mi_llm.study import Llm, Price

FATAL = (401, 403, 404)  # key, rights, model: a failure of one request is a failure of all
KEY = re.compile(r"\b(sk|pk|rk)-[\w-]{8,}|Bearer [\w.~+/=-]{8,}")
SHORTEST_KEY = 8  # characters; anything shorter is a placeholder for a server that takes any key, and may occur in an answer
REMOVED = "[removed]"


def api_key() -> str:
    """The key of the environment; local servers take any."""
    return os.environ.get("OPENAI_API_KEY", "").strip() or "none"


def clean(text: str) -> str:
    """A server's text without anything that is, or looks like, a key."""
    key = api_key()
    return KEY.sub(REMOVED, text.replace(key, REMOVED) if len(key) >= SHORTEST_KEY else text)


def cleaned(value: Any) -> Any:
    """A JSON value whose texts are clean, and of which UTF-8 can be written: half of a surrogate pair becomes U+FFFD."""
    if isinstance(value, str):
        return clean(value.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    if isinstance(value, dict):
        return {cleaned(name): cleaned(content) for name, content in value.items()}
    return [cleaned(content) for content in value] if isinstance(value, list) else value


def reason(error: openai.OpenAIError) -> str:
    """An error in one line, without keys."""
    status = f" {error.status_code}" if isinstance(error, openai.APIStatusError) else ""
    return clean(f"{type(error).__name__}{status}: {' '.join(str(error).split())}")[:300]


@cache
def encoding_of(model: str) -> tiktoken.Encoding | None:
    """A model's own tokenizer; None if tiktoken does not know the model, or cannot download the table."""
    try:
        return tiktoken.encoding_for_model(model)
    except (KeyError, OSError):
        return None


def count_tokens(model: str, text: str) -> int:
    """Tokens of a text by the model's own tokenizer, or one token per character without it."""
    encoding = encoding_of(model)
    return len(encoding.encode(text, disallowed_special=())) if encoding else len(text)


def cost(price: Price | None, tokens_in: int, tokens_out: int) -> float:
    """The cost of so many tokens in US dollars; 0 if the parameters name no price."""
    return (price.input * tokens_in + price.output * tokens_out) / 1e6 if price else 0.0


@dataclass
class Ledger:
    """What one cassette's answers have used (requests, tokens, US dollars), and whether the budget allows another."""

    options: Llm
    requests: int = 0
    tokens: int = 0
    usd: float = 0.0
    in_flight: int = 0
    highest_tokens: int = 0
    highest_usd: float = 0.0

    @property
    def price(self) -> Price | None:
        """The model's price, if the parameters name one."""
        return self.options.prices.get(self.options.model)

    def add(self, record: Record) -> None:
        """Count one answer."""
        used = record["usage"] or {}
        tokens_in, tokens_out = int(used.get("prompt_tokens") or 0), int(used.get("completion_tokens") or 0)
        share = self.options.batch_discount if record["batch"] else 1.0
        spent = share * cost(self.price, tokens_in, tokens_out)
        self.requests += 1
        self.tokens += tokens_in + tokens_out
        self.usd += spent
        self.highest_tokens = max(self.highest_tokens, tokens_in + tokens_out)
        self.highest_usd = max(self.highest_usd, spent)

    def expect(self, asked: Question, share: float = 1.0) -> None:
        """Record a lower bound on a question's cost, at this share of the price: what is sent."""
        sent = sum(count_tokens(self.options.model, message["content"]) for message in asked.request["messages"])
        self.highest_tokens = max(self.highest_tokens, sent)
        self.highest_usd = max(self.highest_usd, cost(self.price, sent, 0) * share)

    def exhausted(self) -> str | None:
        """Which limit one more request could exceed, if each request costs as much as the most expensive one; or None."""
        open_requests = self.in_flight + 1
        if self.requests + open_requests > self.options.budget.requests:
            return f"requests: {self.requests + self.in_flight} of {self.options.budget.requests}"
        if self.tokens + open_requests * self.highest_tokens > self.options.budget.tokens:
            return f"tokens: {self.tokens} of {self.options.budget.tokens}"
        if self.usd + open_requests * self.highest_usd > self.options.budget.usd:
            return f"US dollars: {self.usd:.2f} of {self.options.budget.usd:g}"
        return None


def ledger_of(options: Llm, cassette: Cassette) -> Ledger:
    """What the study's model has used for a cassette so far."""
    ledger = Ledger(options)
    for known in cassette.records:
        if known["request"]["model"] == options.model:
            ledger.add(known)
    return ledger


def record_of(asked: Question, body: str, started: datetime, ended: datetime, batch: str | None = None) -> Record:
    """The sealed record of one response body: `problem` says what is wrong with the answer, `batch` which batch it came from."""
    response: Any = clean(body)
    problem: str | None = None
    try:
        response = cleaned(json.loads(body, parse_constant=lambda _: None))  # NaN and Infinity are not JSON
        choice = response["choices"][0]
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
        if choice["message"].get("refusal"):
            problem = "refused"
        elif finish not in (None, "stop") and not (asked.any_text and finish == "length"):
            problem = f"ended by {finish}"
        elif not isinstance(text, str) or not (text.strip() or asked.any_text):
            problem = "empty"
        else:
            problem = asked.check(text)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        problem = "not a chat completion"
    known = response if isinstance(response, dict) else {}
    return sealed(
        {
            "key": asked.key,
            "about": asked.about,
            "prompt": dict(asked.prompt),
            "request": asked.request,
            "response": response,
            "model": known.get("model"),
            "usage": known.get("usage"),
            "started": started.isoformat(),
            "ended": ended.isoformat(),
            "sdk": f"openai {openai.__version__}",
            "batch": batch,
            "problem": problem,
        }
    )


class Recorder:
    """One recording: the questions in turn, `concurrency` at a time, until all are answered or there is a reason to stop."""

    def __init__(self, options: Llm, cassette: Cassette, title: str) -> None:
        self.options, self.cassette, self.title = options, cassette, title
        self.ledger = ledger_of(options, cassette)
        self.stopped: str | None = None
        self.failed: list[str] = []
        self.misses = 0  # network failures in a row
        self.waiting: list[Record] = []
        self.writing = asyncio.Lock()

    async def run(self, questions: Sequence[Question]) -> None:
        """Ask all questions; failures are then in `failed`, a reason for stopping early in `stopped`."""
        options = self.options
        pending = iter(questions)
        async with openai.AsyncOpenAI(
            base_url=options.base_url, api_key=api_key(), max_retries=options.network_retries, timeout=options.timeout_s
        ) as client:
            with tqdm(total=len(questions), desc=self.title, unit="answer") as bar:
                if not self.ledger.requests:  # the first answer shows what one costs
                    await self.work(client, islice(pending, 1), bar)
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(options.concurrency, len(questions))):
                        group.create_task(self.work(client, pending, bar))

    async def work(self, client: openai.AsyncOpenAI, pending: Iterator[Question], bar: Any) -> None:
        """Take questions until there are none left, or a reason to stop."""
        for asked in pending:
            problem = await self.ask(client, asked)
            if problem:
                self.failed.append(f"{asked.about}: {problem}")
            bar.update()
            bar.set_postfix_str(
                f"{self.ledger.tokens} tokens, {self.ledger.usd:.2f} USD, {len(self.failed)} failed", refresh=False
            )
            if self.stopped:
                return

    async def ask(self, client: openai.AsyncOpenAI, asked: Question) -> str | None:
        """One question, `attempts` times at most: the SDK retries the network, we retry answers that fail the check."""
        problem: str | None = "not asked"
        self.ledger.expect(asked)
        for _ in range(self.options.attempts):
            self.stopped = self.stopped or self.ledger.exhausted()
            if self.stopped:
                return problem
            self.ledger.in_flight += 1
            started = datetime.now(UTC)
            try:
                response = await client.chat.completions.with_raw_response.create(
                    model=asked.request["model"],
                    messages=asked.request["messages"],
                    extra_body=asked.request,  # also settings of vLLM that OpenAI's client has no arguments for
                )
            except openai.OpenAIError as error:
                return self.network(error)
            finally:
                self.ledger.in_flight -= 1
            self.misses = 0
            record = record_of(asked, response.text, started, datetime.now(UTC))
            self.ledger.add(record)
            await self.keep(record)
            problem = record["problem"]
            if problem is None:
                return None
        return problem

    def network(self, error: openai.OpenAIError) -> str:
        """The reason of a failure that the SDK's retries did not cure; sets `stopped` if it concerns all questions."""
        problem = reason(error)
        self.misses += 1
        status = error.status_code if isinstance(error, openai.APIStatusError) else None
        code = error.code if isinstance(error, openai.APIError) else None
        if status in FATAL or code == "insufficient_quota" or self.misses > self.options.concurrency:
            self.stopped = self.stopped or problem
        return problem

    async def keep(self, record: Record) -> None:
        """Return when the record is on the disk; answers that come together are written together, with one fsync."""
        self.waiting.append(record)
        async with self.writing:
            together, self.waiting = self.waiting, []
            if together:
                await asyncio.to_thread(self.cassette.append, together)


def record(options: Llm, questions: Sequence[Question], cassette: Cassette, title: str) -> None:
    """Ask for every question; raises Problem, after keeping what came, if any has no valid answer."""
    recorder = Recorder(options, cassette, title)
    try:
        asyncio.run(recorder.run(questions))
    except* Problem as problems:
        raise problems.exceptions[0] from None
    missing = [asked for asked in questions if asked.key not in cassette.good]
    if recorder.stopped:
        raise Problem(
            str(cassette.path),
            f"stopped ({recorder.stopped}) with {len(missing)} of {len(questions)} requests unanswered",
            "an answer for each, within llm.budget",
            "fix the cause and run the same command again: recorded answers are not requested again",
        )
    if recorder.failed:
        raise Problem(
            str(cassette.path),
            f"{len(recorder.failed)} of {len(questions)} requests have no valid answer; the first is {recorder.failed[0]}",
            "a valid answer for each",
            "the valid answers are kept: run the same command again to ask for the rest;"
            f" `mi-llm cassette ls {cassette.path} --failed` shows what came",
        )
