"""Recording: ask a model for answers, through the `openai` client and any compatible base URL, and keep each as it comes.

The SDK's own retries do the network (Retry-After honored); ours, bounded, happen only when an answer fails its check, and
failed answers are kept too. Every answer is on the disk before the next question takes its turn, and every request, also a
repeated one, is counted in `cassette.requests` before it leaves. The API key comes from OPENAI_API_KEY and is written nowhere,
not even where a server repeats it.
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import httpx2
import openai
import tiktoken
from tqdm import tqdm

from mi_llm import storage
from mi_llm.llm import answer, wire
from mi_llm.llm.cassette import Cassette, Question, Record, Request, key_of, sealed
from mi_llm.problem import Problem
from mi_llm.study import Llm, Price

FATAL = (401, 403, 404)  # key, rights, model: a failure of one request is a failure of all
KEY = re.compile(r"\b(sk|pk|rk)-[\w-]{8,}|Bearer [\w.~+/=-]{8,}")
SHORTEST_KEY = 8  # characters; anything shorter is a placeholder for a server that takes any key, and may occur in an answer
REMOVED = "[removed]"
LONGEST_PROBLEM, KEPT = 300, 100_000  # characters: of a fault, and of a response that is no JSON


def clean(text: str) -> str:
    """A server's text without anything that is, or looks like, a key."""
    key = wire.api_key()
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
    status, more = "", f" ({error.__cause__})" if isinstance(error, openai.APIConnectionError) and error.__cause__ else ""
    if isinstance(error, openai.APIStatusError):
        status, address = f" {error.status_code}", error.response.headers.get("Location")
        more = f", redirects to {address}, which is not followed" if address else ""
    return clean(f"{type(error).__name__}{status}: {' '.join(f'{error}{more}'.split())}")[:LONGEST_PROBLEM]


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
        tokens_in, tokens_out = self.tokens_of(record)
        share = self.options.batch_discount if record["batch"] else 1.0
        spent = share * cost(self.price, tokens_in, tokens_out)
        self.tokens += tokens_in + tokens_out
        self.usd += spent
        self.highest_tokens = max(self.highest_tokens, tokens_in + tokens_out)
        self.highest_usd = max(self.highest_usd, spent)

    def tokens_of(self, record: Record) -> tuple[int, int]:
        """The tokens that an answer used, as the service counts them; where it does not, as we count: the whole response."""
        response, (sent, received) = record["response"], answer.tokens_of(record["usage"])
        if isinstance(response, dict) and "choices" not in response:  # an error's body
            return sent or 0, received or 0
        return (
            self.sent(record["request"]) if sent is None else sent,
            count_tokens(self.options.model, storage.dump(response)) if received is None else received,
        )

    def sent(self, request: Request) -> int:
        """The tokens of a request's messages."""
        return sum(count_tokens(self.options.model, message["content"]) for message in request["messages"])

    def expect(self, asked: Question, share: float = 1.0) -> None:
        """Record a lower bound on a question's cost, at this share of the price, and that it is under way."""
        sent = self.sent(asked.request)
        self.highest_tokens = max(self.highest_tokens, sent)
        self.highest_usd = max(self.highest_usd, cost(self.price, sent, 0) * share)
        self.in_flight += 1

    def exhausted(self) -> str | None:
        """Which limit one more request could exceed, or None: those under way may each cost as much as the most expensive one."""
        if self.requests >= self.options.budget.requests:
            return f"requests: {self.requests} of {self.options.budget.requests}"
        if self.tokens + self.in_flight * self.highest_tokens > self.options.budget.tokens:
            return f"tokens: {self.tokens} of {self.options.budget.tokens}"
        if self.usd + self.in_flight * self.highest_usd > self.options.budget.usd:
            return f"US dollars: {self.usd:.2f} of {self.options.budget.usd:g}"
        return None


def ledger_of(options: Llm, cassette: Cassette) -> Ledger:
    """What the study's model has used for a cassette so far: what is recorded, and the requests that got no answer."""
    ledger = Ledger(options)
    records = [known for known in cassette.records if known["request"]["model"] == options.model]
    for known in records:
        ledger.add(known)
    recorded = Counter(known["key"] for known in records)
    path = requests_of(cassette)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    sent = Counter(line.partition(" ")[0] for line in lines if line.partition(" ")[2] == options.model)
    ledger.requests = sum((recorded | sent).values())
    return ledger


def requests_of(cassette: Cassette) -> Path:
    """The file that counts the requests for a cassette, also those without an answer: a line each, key and model."""
    return cassette.path.with_suffix(".requests")


def record_of(
    asked: Question, body: str, started: datetime, ended: datetime, *, batch: str | None = None, refusal: str | None = None
) -> Record:
    """The sealed record of one response body: `problem` says what is wrong with the answer, `batch` which batch it came from.

    `refusal`: what the service said in place of an answer.
    """
    try:
        response = cleaned(answer.loads(body))
    except ValueError:
        response = cleaned(body[:KEPT])
    known = response if isinstance(response, dict) else {}
    model, usage = known.get("model"), known.get("usage")
    problem = refusal or fault(asked, response)
    return sealed(
        {
            "key": asked.key,
            "about": asked.about,
            "prompt": dict(asked.prompt),
            "request": asked.request,
            "response": response,
            "model": model if isinstance(model, str) else None,
            "usage": usage if isinstance(usage, dict) else None,
            "started": started.isoformat(),
            "ended": ended.isoformat(),
            "sdk": f"openai {openai.__version__}",
            "batch": batch,
            "problem": cleaned(problem[:LONGEST_PROBLEM]) if problem else None,
        }
    )


def fault(asked: Question, response: Any) -> str | None:
    """What is wrong with a response, or None. Nothing is raised: an answer is paid for, and its record must be written."""
    try:
        choice = response["choices"][0]
        text, finish = answer.without_thoughts(choice["message"].get("content") or ""), answer.finish_of(choice)
        refused = choice["message"].get("refusal")
    except (LookupError, TypeError, AttributeError):
        return "not a chat completion"
    if refused or (finish != "stop" and not (asked.any_text and finish == "length")):
        return "refused" if refused else f"ended by {finish}"
    if not (asked.any_text or text.strip()):
        return "empty"
    if answer.UNPRINTABLE.search(text) and not asked.any_text:
        return "control characters in the text"
    try:
        return asked.check(text)
    except Exception as error:
        return f"could not be checked ({type(error).__name__})"


class Exhausted(openai.OpenAIError):
    """A request that is not sent, since there is a reason to stop; the SDK does not repeat it."""


class Recorder:
    """One recording: the questions in turn, `concurrency` at a time, until all are answered or there is a reason to stop."""

    def __init__(self, options: Llm, cassette: Cassette, title: str) -> None:
        self.options, self.cassette, self.title = options, cassette, title
        self.ledger = ledger_of(options, cassette)
        self.stopped: str | None = None
        self.failed: list[str] = []
        self.reached = False  # whether there is a server
        self.misses = 0  # network failures in a row
        self.silent: set[str] = set()  # requests under way that the server has not begun to answer
        self.waiting: list[Record] = []
        self.writing = asyncio.Lock()

    async def run(self, questions: Sequence[Question]) -> None:
        """Ask all questions; failures are then in `failed`, a reason for stopping early in `stopped`."""
        options = self.options
        pending = iter(questions)
        timeout = openai.Timeout(options.timeout_s, connect=min(options.timeout_s, wire.CONNECT_S))
        async with wire.client(
            options.base_url, options.network_retries, timeout, before=self.sends, after=self.hears, whole_s=options.timeout_s
        ) as client:
            with tqdm(total=len(questions), desc=self.title, unit="answer") as bar:
                await self.work(client, islice(pending, 1), bar)  # shows whether there is a server, and what an answer costs
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(options.concurrency, len(questions))):
                        group.create_task(self.work(client, pending, bar))

    async def work(self, client: openai.AsyncOpenAI, pending: Iterator[Question], bar: Any) -> None:
        """Take questions until there are none left, or a reason to stop."""
        for asked in pending:
            if self.stopped:
                return
            problem = await self.ask(client, asked)
            if problem:
                self.failed.append(f"{asked.about}: {problem}")
            bar.update()
            money = f"{self.ledger.usd:.2f} USD" if self.ledger.price else "no price known"
            bar.set_postfix_str(f"{self.ledger.tokens} tokens, {money}, {len(self.failed)} failed", refresh=False)

    async def ask(self, client: openai.AsyncOpenAI, asked: Question) -> str | None:
        """One question, `attempts` answers at most: the SDK retries the network, we retry answers that fail the check."""
        problem: str | None = "not asked"
        attempts = self.options.attempts
        while attempts:
            if self.stopped:
                return problem
            self.ledger.expect(asked)
            started = datetime.now(UTC)
            try:
                patient = client if self.reached else client.with_options(max_retries=0)
                response = await patient.chat.completions.with_raw_response.create(
                    model=asked.request["model"],
                    messages=asked.request["messages"],
                    extra_body=asked.request,  # also settings of vLLM that OpenAI's client has no arguments for
                )
            except openai.OpenAIError as error:
                if wire.unreachable(error):
                    self.silent.discard(asked.key)
                if self.reached or wire.unreachable(error):
                    return problem if isinstance(error, Exhausted) else self.network(error)
                self.reached = True
                continue
            finally:
                self.ledger.in_flight -= 1
                self.lose(asked.key, asked.request)
            self.reached, self.misses = True, 0
            record = record_of(asked, response.text, started, datetime.now(UTC))
            self.ledger.add(record)
            await self.keep(record)
            problem, attempts = record["problem"], attempts - 1
            if problem is None:
                return None
        return problem

    async def sends(self, request: httpx2.Request) -> None:
        """Count a request before it leaves, so that a process that is killed has counted it too; raises Exhausted."""
        self.stopped = self.stopped or self.ledger.exhausted()
        if self.stopped:
            raise Exhausted(self.stopped)
        body = json.loads(request.content)
        key = key_of(body)
        self.lose(key, body)
        self.silent.add(key)
        self.ledger.requests += 1
        try:
            with requests_of(self.cassette).open("a", encoding="utf-8") as lines:
                lines.write(f"{key} {self.options.model}\n")
        except OSError as error:
            raise storage.unwritable(requests_of(self.cassette), error) from error

    async def hears(self, response: httpx2.Response) -> None:
        """Note that a request is being answered."""
        self.silent.discard(key_of(json.loads(response.request.content)))

    def lose(self, key: str, request: Request) -> None:
        """Count what was sent with a request that got no answer: the service may have answered, and count it too."""
        if key in self.silent:
            self.silent.remove(key)
            sent = self.ledger.sent(request)
            self.ledger.tokens += sent
            self.ledger.usd += cost(self.ledger.price, sent, 0)

    def network(self, error: openai.OpenAIError) -> str:
        """The reason of a failure that the SDK's retries did not cure; sets `stopped` if it concerns all questions."""
        problem = reason(error)
        self.misses += 1
        status = error.status_code if isinstance(error, openai.APIStatusError) else None
        code = error.code if isinstance(error, openai.APIError) else None
        hopeless = status in FATAL or code == "insufficient_quota" or not self.reached
        if hopeless or self.misses > self.options.concurrency:
            self.stopped = self.stopped or f"{problem} at {self.options.base_url}"
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
            "the valid answers are kept: run the same command again to ask for the rest; a setting that the server refuses can be"
            f" left out with llm.extra_body; `mi-llm cassette ls {cassette.path} --failed` shows what came",
        )
