"""The chat's page and the routes behind it, as a FastAPI application.

Whoever comes may send client messages, choose a model, ask for a reply again, stop one, vote, and take their own talks away; the
server builds every message that a model gets. Texts are in memory only and in no log.
"""

import asyncio
import hashlib
import hmac
import math
import re
import secrets
import sys
import traceback
import unicodedata
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import parse_qs, urlsplit

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from mi_llm import storage
from mi_llm.apps import web
from mi_llm.apps.chat import guard, limits
from mi_llm.apps.chat.answering import Answering
from mi_llm.apps.chat.cards import Card
from mi_llm.apps.chat.codes import SCORES, graded_by_chance, validity
from mi_llm.apps.chat.counselors import Counselors, Manner, Unanswered
from mi_llm.apps.chat.experiment import Record
from mi_llm.apps.chat.help import bundled
from mi_llm.apps.chat.limits import Limits
from mi_llm.apps.chat.page_texts import PAGE_SCRIPT, PAGE_WORDS, size
from mi_llm.apps.chat.talk_texts import FAULTS, SCRIPT, WORDS
from mi_llm.apps.chat.talks import (
    CHARACTERS,
    CRITERIA,
    ROUNDS,
    VOTE_ROUNDS,
    WAYS,
    Choice,
    Round,
    Shelf,
    Talk,
    Visitor,
    Vote,
    Way,
    begun,
    keep,
)
from mi_llm.apps.chat.transcript import transcript
from mi_llm.apps.chat.votes import Votes
from mi_llm.codebook.coding import BEHAVIORS, THRESHOLDS, Text

MESSAGE = 4000  # characters
REASON = 1000  # characters
SITE = web.Site(
    __package__,
    {**WORDS, **PAGE_WORDS},
    forms="'self'",
    policy="; require-trusted-types-for 'script'; trusted-types 'none'",
    headers={
        "X-Frame-Options": "DENY",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    },
)
SITE.templates.globals.update(
    help=bundled, ways=WAYS, script=(*SCRIPT, *FAULTS, *PAGE_SCRIPT), most=MESSAGE, longest_reason=REASON, criteria=CRITERIA,
    vote_rounds=VOTE_ROUNDS, behaviors=BEHAVIORS, scores=SCORES, thresholds=THRESHOLDS, validity=validity,
    graded_by_chance=graded_by_chance,
)  # fmt: skip
SITE.templates.tests["fits"] = lambda dangers, current: not set(dangers).isdisjoint(current)


@dataclass(frozen=True)
class Chat:
    """What the application works with. `address` is where people reach it if not by host and port; `token` opens it, if set.

    `notice` is what the study says of its models, on the page at all times; `language` is the one they speak; `record` is that of
    an experiment, if there is one.
    """

    counselors: Counselors
    manner: Manner
    votes: Votes
    cards: dict[str, Card]
    notice: Text
    language: str
    address: str = ""
    token: str = ""
    record: Record | None = None
    shelf: Shelf = field(default_factory=Shelf)
    limits: Limits = field(default_factory=Limits)
    under_way: dict[Answering, str] = field(default_factory=dict)  # with the address that asked
    keeping: set[asyncio.Task[None]] = field(default_factory=set)  # rounds on their way to the disk
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    @property
    def ticket(self) -> str:
        """The cookie of a browser that gave the token; invalid after a restart."""
        return hmac.new(self.secret, self.token.encode(), hashlib.sha256).hexdigest()


def plain_text(text: str) -> str:
    """A message in the form that is sent on: no control characters but line breaks and tabs, not empty, not too long."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    if any(unicodedata.category(mark) == "Cc" and mark not in "\n\t" for mark in text):
        raise PydanticCustomError("control", "control characters")
    if len(unicodedata.normalize("NFKC", text)) > MESSAGE:  # what the guard reads: a ligature can become 18 characters
        raise PydanticCustomError("string_too_long", "too long")
    if not text.strip():
        raise PydanticCustomError("empty", "the message is empty")
    return text.strip()


class Sent(BaseModel):
    """What a page sends: nothing unknown in it, nothing of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class NewTalk(Sent):
    """Which model, how, and as which client; in an experiment instead who takes part, after agreeing."""

    model: str = Field(default="", max_length=100)
    way: Way = "beside"
    profile: str | None = Field(default=None, max_length=100)
    participant: str = Field(default="", max_length=40)
    agreed: bool = False


class NewMessage(Sent):
    """What the client says; `instead_of` is the round, from 0, from which the talk is repeated."""

    text: Annotated[str, Field(max_length=MESSAGE), AfterValidator(plain_text)]
    instead_of: int | None = Field(default=None, ge=0, le=ROUNDS)


class NewVote(Sent):
    """Which side was better, in all and on each criterion, why, and whether the talk may be kept with the vote."""

    choice: Choice
    understood: Choice
    respected: Choice
    helped: Choice
    reason: str = Field(max_length=REASON)
    with_text: bool


class Nothing(Sent):
    """The body of a route that needs no content."""


Body = TypeVar("Body", bound=Sent)


class Door:
    """Middleware that refuses requests."""

    def __init__(self, app: ASGIApp, chat: Chat) -> None:
        self.app, self.chat = app, chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request in, or refuse it."""
        if scope["type"] == "http":
            await (refused(self.chat, Request(scope)) or self.app)(scope, receive, send)


def failed(error: Exception) -> Response:
    """The answer after an unexpected error; the terminal shows where it happened, without anybody's text."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    print(f"mi-llm chat: {type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}", file=sys.stderr)
    return PlainTextResponse("internal error", 500)


def create(chat: Chat) -> FastAPI:
    """The application."""
    app = SITE.application(Middleware(web.unbroken, failed=failed), Middleware(Door, chat=chat))
    app.add_exception_handler(StarletteHTTPException, told)
    page_doors(app, chat)
    talk_doors(app, chat)
    reply_doors(app, chat)
    outcome_doors(app, chat)
    return app


def page_doors(app: FastAPI, chat: Chat) -> None:
    """Routes of the page, the sign-in and the health checks."""

    @app.get("/")
    async def first(request: Request) -> Response:
        if not let_in(chat, request):
            return SITE.page(request, "enter.html.jinja", status=401, wrong=False, place=region(request))
        models, away, tongue = {}, False, web.language(request)
        try:
            models = await chat.counselors.models()
        except Unanswered:
            away = True
        return SITE.page(
            request, "chat.html.jinja", models=models, away=away, cards=list(chat.cards.values()), notice=chat.notice,
            sizes={name: getattr(size(number), tongue) for name, number in chat.counselors.parameters.items()},
            language=chat.language,
            experiment=chat.record.experiment if chat.record else None, place=region(request),
        )  # fmt: skip

    @app.post("/enter")
    async def enter(request: Request) -> Response:
        if seconds := chat.limits.wait(limits.SIGN_INS_ADDRESS, who(request)):
            raise HTTPException(429, "too many attempts", {"Retry-After": str(math.ceil(seconds))})
        token = parse_qs((await request.body()).decode("utf-8", "replace")).get("token", [""])[0]
        if not chat.token or not hmac.compare_digest(token.encode("utf-8", "replace"), chat.token.encode()):
            return SITE.page(request, "enter.html.jinja", status=401, wrong=True, place=region(request))
        answer = RedirectResponse("/", 303)
        web.set_cookie(request, answer, "ticket", chat.ticket)
        return answer

    @app.get("/health")
    async def health() -> Response:
        return PlainTextResponse("ok")

    @app.get("/ready")
    async def ready() -> Response:
        try:
            return PlainTextResponse("ok" if await chat.counselors.models() else "no model", 200)
        except Unanswered:
            return PlainTextResponse("the model server does not answer", 503)


def talk_doors(app: FastAPI, chat: Chat) -> None:
    """Routes that begin, show and end a talk."""

    @app.post("/talks")
    async def begin(request: Request) -> Response:
        visitor, fresh = chat.shelf.visitor(request.cookies.get("visitor")), ""
        sent = await read(request, NewTalk)
        card = chat.cards.get(sent.profile) if sent.profile else None
        if sent.profile and card is None:
            raise HTTPException(422, "no such client card")
        model, way = chosen(chat, sent)
        try:
            offered = (await chat.counselors.models()).get(model)
        except Unanswered:
            raise HTTPException(502, "away") from None
        talk = begun(model, way, offered, card.profile if card else None, sent.participant) if offered else None
        if talk is None:
            raise HTTPException(422, "no such model")
        if visitor is None:
            if seconds := chat.limits.wait(limits.VISITORS_ADDRESS, who(request)):
                raise HTTPException(429, "too many visitors", {"Retry-After": str(math.ceil(seconds))})
            fresh, visitor = chat.shelf.welcome()
        if chat.record:
            await saved(chat.record.agreed, sent.participant, web.language(request))
        keep(visitor, talk)
        answer = JSONResponse(talk.shown(), 201)
        if fresh:
            web.set_cookie(request, answer, "visitor", fresh)
        return answer

    @app.get("/talks/{name}")
    async def show(request: Request, name: str) -> Response:
        return JSONResponse(own(chat, request, name)[1].shown())

    @app.delete("/talks/{name}")
    async def end(request: Request, name: str) -> Response:
        visitor, talk = own(chat, request, name)
        for answering in chat.under_way:
            if answering.talk is talk:
                answering.stop()
        del visitor.talks[name]
        return Response(status_code=204)


def outcome_doors(app: FastAPI, chat: Chat) -> None:
    """Routes of a talk's vote and its dialogs."""

    @app.post("/talks/{name}/vote")
    async def vote(request: Request, name: str) -> Response:
        talk = own(chat, request, name)[1]
        sent = await read(request, NewVote)
        if talk.way != "blind" or talk.compared < VOTE_ROUNDS:
            raise HTTPException(409, "nothing to compare yet")
        if busy(talk):
            raise HTTPException(409, "replies are still coming")
        if talk.vote is not None:
            raise HTTPException(409, "voted already")
        criteria = {criterion: getattr(sent, criterion) for criterion in CRITERIA}
        talk.vote = Vote(sent.choice, criteria, sent.reason.strip())  # before any await, so that a second request sees it
        try:
            await saved(chat.votes.add, talk, with_text=sent.with_text)
        except HTTPException:
            talk.vote = None
            raise
        return JSONResponse(talk.shown())

    @app.delete("/talks/{name}/vote")
    async def undo(request: Request, name: str) -> Response:
        talk = own(chat, request, name)[1]
        if (before := talk.vote) is None or talk.revealed:
            raise HTTPException(409, "no vote that can be undone")
        talk.vote = None
        try:
            await saved(chat.votes.add, talk, with_text=False)
        except HTTPException:
            talk.vote = before
            raise
        return JSONResponse(talk.shown())

    @app.post("/talks/{name}/reveal")
    async def reveal(request: Request, name: str) -> Response:
        talk = own(chat, request, name)[1]
        await read(request, Nothing)
        if talk.vote is None:
            raise HTTPException(409, "vote first")
        talk.revealed = True
        return JSONResponse(talk.shown())

    @app.get("/talks/{name}/dialogs/{side}")
    async def take(request: Request, name: str, side: Literal["0", "1"]) -> Response:
        talk = own(chat, request, name)[1]
        complete(talk)
        if int(side) >= len(talk.sides) or not (dialog := talk.dialog(int(side))).turns:
            raise HTTPException(409, "nothing to download yet")
        return download(storage.dump(dialog.model_dump()) + "\n", f"{talk.model}.{talk.sides[int(side)]}.{talk.id}.jsonl")

    @app.get("/talks/{name}/text")
    async def as_text(request: Request, name: str) -> Response:
        talk = own(chat, request, name)[1]
        complete(talk)
        return download(transcript(talk, chat.notice, SITE.words, web.language(request)), f"{talk.model}.{talk.id}.txt")


def complete(talk: Talk) -> None:
    """Raise HTTPException where a talk may not be taken away: before the vote, while replies come, and if nothing was said."""
    if talk.hidden:
        raise HTTPException(409, "vote first")
    if busy(talk) or not talk.rounds:
        raise HTTPException(409, "nothing to download yet")


def download(content: str, name: str) -> Response:
    """A file of text or JSON Lines under a safe name."""
    file = re.sub(r"[^A-Za-z0-9.-]", "-", name)
    kind = "application/x-ndjson" if file.endswith(".jsonl") else "text/plain; charset=utf-8"
    return Response(content, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{file}"'})


def chosen(chat: Chat, sent: NewTalk) -> tuple[str, Way]:
    """The model and the way of a new talk: the visitor's choice, or what the experiment assigned; raises HTTPException."""
    if chat.record is None:
        if sent.participant or sent.agreed:
            raise HTTPException(422, "no experiment")
        return sent.model, sent.way
    assigned = chat.record.experiment.assignment.get(sent.participant)
    if assigned is None:
        raise HTTPException(403, "no such participant")
    if not sent.agreed:
        raise HTTPException(422, "not agreed")
    return chat.record.experiment.model, assigned


async def saved(write: Callable[..., None], *inputs: Any, **options: Any) -> None:
    """Write to the disk beside the event loop; raises HTTPException where that fails, and the terminal says why."""
    try:
        await run_in_threadpool(write, *inputs, **options)
    except OSError as error:
        print(f"mi-llm chat: nothing could be saved ({error.strerror or error})", file=sys.stderr)
        raise HTTPException(503, "not saved") from None


def reply_doors(app: FastAPI, chat: Chat) -> None:
    """Routes that make a model reply, or stop it."""

    @app.post("/talks/{name}/messages")
    async def say(request: Request, name: str) -> Response:
        talk = own(chat, request, name)[1]
        sent = await read(request, NewMessage)
        admit(chat, request, talk)
        if sent.instead_of is not None:
            if sent.instead_of >= len(talk.rounds):
                raise HTTPException(409, "no such round")
            del talk.rounds[sent.instead_of :]
            talk.edited += 1
        if len(talk.rounds) >= ROUNDS or talk.characters + len(sent.text) > CHARACTERS:
            raise HTTPException(409, "the talk is long enough")
        talk.hear(sent.text)
        talk.looking = True  # before any await, so that a second message waits its turn
        try:
            danger = await run_in_threadpool(guard.look, tuple(talk.heard), talk.alert)
        finally:
            talk.looking = False
        plain = danger.categories if danger.tier == "plain" else ()
        talk.alerted(plain)
        talk.rounds.append(Round(sent.text, plain, () if plain else danger.categories))
        if plain:
            return JSONResponse({"found": list(plain)})
        return stream(chat, request, talk, drawn=False)

    @app.post("/talks/{name}/again")
    async def again(request: Request, name: str) -> Response:
        talk = own(chat, request, name)[1]
        await read(request, Nothing)
        admit(chat, request, talk)
        if not talk.rounds or talk.rounds[-1].dangers:
            raise HTTPException(409, "nothing to reply to")
        return stream(chat, request, talk, drawn=True)

    @app.post("/talks/{name}/stop")
    async def stop(request: Request, name: str) -> Response:
        talk = own(chat, request, name)[1]
        await read(request, Nothing)
        for answering in chat.under_way:
            if answering.talk is talk:
                answering.stop()
        return Response(status_code=204)


def stream(chat: Chat, request: Request, talk: Talk, *, drawn: bool) -> Response:
    """The replies of the last round as they come."""
    answering = Answering(chat.counselors, talk, chat.manner, drawn=drawn)
    chat.under_way[answering] = who(request)
    for task in answering.endings:
        task.add_done_callback(lambda _: ended(chat, answering))
    headers = {"X-Accel-Buffering": "no", "Possible-Danger": " ".join(talk.rounds[-1].help)}
    return StreamingResponse(answering.events(), media_type="text/event-stream", headers=headers)


def ended(chat: Chat, answering: Answering) -> None:
    """What follows a reply that is complete: if all of its round are, it is no longer under way, and an experiment keeps it."""
    if answering.under_way or chat.under_way.pop(answering, None) is None or chat.record is None:
        return
    keeping = asyncio.create_task(kept(chat.record, chat.record.said(answering.talk)))
    chat.keeping.add(keeping)
    keeping.add_done_callback(chat.keeping.discard)


async def kept(record: Record, line: dict[str, Any]) -> None:
    """Keep a round of an experiment; if that fails, the terminal says so, and the talk goes on."""
    with suppress(HTTPException):
        await saved(record.add, line)


def busy(talk: Talk) -> bool:
    """Whether a message of a talk is being read or its replies are still coming."""
    return talk.looking or (bool(talk.rounds) and any(reply.finish == "" for reply in talk.rounds[-1].replies))


def admit(chat: Chat, request: Request, talk: Talk) -> None:
    """Raise HTTPException where a message may not be sent: replies are coming, too fast, or too many at once."""
    if busy(talk):
        raise HTTPException(409, "replies are still coming")
    visitor = request.cookies.get("visitor", "")
    seconds = max(chat.limits.wait(limits.MESSAGES_ADDRESS, who(request)), chat.limits.wait(limits.MESSAGES_VISITOR, visitor))
    if seconds:
        raise HTTPException(429, "too fast", {"Retry-After": str(math.ceil(seconds))})
    under_way = Counter[str]()
    for answering, asker in chat.under_way.items():
        under_way[asker] += answering.under_way
    mine = under_way.pop(who(request), 0)
    if mine + len(talk.sides) > (limits.REPLIES_UNDER_WAY - under_way.total()) // 2:  # half of what others leave
        raise HTTPException(429, "busy", {"Retry-After": "5"})


def own(chat: Chat, request: Request, name: str) -> tuple[Visitor, Talk]:
    """The visitor and their talk with this id; raises 404 for everything else."""
    visitor = chat.shelf.visitor(request.cookies.get("visitor"))
    talk = visitor.talks.get(name) if visitor else None
    if visitor is None or talk is None:
        raise HTTPException(404, "no such talk")
    return visitor, talk


async def read(request: Request, kind: type[Body]) -> Body:
    """The body of a request as a model; raises 413, 415 or 422 with a plain message, never with what was sent."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "JSON, please")
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        types = {fault["type"] for fault in error.errors(include_url=False, include_input=False)}
        if "string_too_long" in types:
            raise HTTPException(413, "too long") from None
        known = {"control": "control characters", "empty": "the message is empty"}
        raise HTTPException(422, next((known[name] for name in types if name in known), "not in the expected form")) from None


def who(request: Request) -> str:
    """The address that a request comes from, or its network."""
    return web.subscriber(request.client.host if request.client else "")


def region(request: Request) -> str:
    """The region, as `help.yaml` names it, of the first language with one that a browser asks for (`zh-TW`); or nothing."""
    parts = [part.lower() for tag in web.accepted_languages(request) for part in tag.split("-")[1:] if len(part) == 2]
    return {"gb": "uk", "mo": "hk"}.get(parts[0], parts[0]) if parts else ""


def let_in(chat: Chat, request: Request) -> bool:
    """Whether a browser has given the access token, or needs none."""
    return not chat.token or hmac.compare_digest(request.cookies.get("ticket", "").encode(), chat.ticket.encode())


def refused(chat: Chat, request: Request) -> Response | None:
    """The refusal of a request: another server's name, another site, no token, or too many requests; None if it may pass."""
    if not web.known_host(request.headers.get("host", ""), urlsplit(chat.address).hostname):
        return PlainTextResponse("not the name of this server", 421)
    if seconds := chat.limits.wait(limits.REQUESTS_ADDRESS, who(request)):
        return PlainTextResponse("too fast", 429, {"Retry-After": str(math.ceil(seconds))})
    if request.method not in ("GET", "HEAD"):
        site = request.headers.get("sec-fetch-site", "same-origin")
        if not web.own_origin(request) or site != "same-origin":
            return PlainTextResponse("from another site", 403)
    if not let_in(chat, request) and request.url.path.startswith("/talks"):
        return PlainTextResponse("sign in first", 401)
    return None


async def told(request: Request, error: Exception) -> Response:
    """An error as plain text."""
    assert isinstance(error, StarletteHTTPException)
    return PlainTextResponse(str(error.detail), error.status_code, error.headers)
