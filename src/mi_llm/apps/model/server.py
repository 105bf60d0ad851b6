"""The model server, `mi-llm serve`: a study's models as `<model>` and `<model>+mi`, for whatever speaks OpenAI's protocol.

Reads the base checkpoints and adapters of a study that has run (`base/<model>/checkpoint/`, `finetune/<model>/adapter/`); writes
nothing. A chat is encoded as stage `respond` encodes a round: in the study's chat format, with a system message only if one is
sent. Why this is not `transformers serve`: docs/architecture.md.
"""

import asyncio
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send
from transformers import PreTrainedTokenizerBase

from mi_llm.apps.model.door import TOKEN, Door
from mi_llm.apps.model.engine import Asked, Closing, Engine, Finish, Full, Piece, Reply, Told
from mi_llm.apps.model.metrics import Metrics
from mi_llm.apps.model.protocol import Answer, ChatRequest, Error, Refusal, described, event, invalid, usage
from mi_llm.apps.web import configured, listen, loopback
from mi_llm.engine.counselor import adapters, with_adapter
from mi_llm.engine.estimate import shape_of
from mi_llm.engine.load import chat_format, checkpoint, enough_memory, prepare_torch
from mi_llm.engine.template import ChatFormat, prompt
from mi_llm.problem import Problem
from mi_llm.study import Study, served_name

CONTEXT = 8192  # tokens of prompt and reply, also where a model could read more: each takes memory
GRACE = 8.0  # seconds for open replies when the server is told to end; container engines kill after 10
COLDEST = 0.01  # below this temperature the likeliest token is practically certain
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Error, "description": "The request is wrong, or is not possible now"},
    "5XX": {"model": Error, "description": "The server is not ready, or failed"},
}
EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}


def broken(finish: Finish) -> Refusal | None:
    """The refusal that a client gets for a reply that failed; None if it ended well."""
    match finish:
        case "late":
            return Refusal(504, "the reply took longer than this server allows", "timeout", "timeout")
        case "closing":
            return Refusal(503, "the server is shutting down", "server_error", "closing", retry_s=5)
        case "failed":
            return Refusal(500, "the model failed on this reply; the request may be correct", "server_error", "failed")
        case _:
            return None


@dataclass(frozen=True)
class Served:
    """A loaded model: what encodes its chats and writes its replies.

    `parameters` is how many the base model has; `marks` are special tokens, which no message may hold.
    """

    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    form: ChatFormat
    context: int
    parameters: int
    marks: tuple[str, ...]


def opened(study: Study, model: str, queue: int, tell: Callable[[Told], None]) -> Served:
    """Load a model with its adapter, if it has one, and start the thread that writes its replies."""
    with enough_memory(model, "all models", "serve fewer models at once with --models"):
        tuned, tokenizer = with_adapter(study, model)
    form = chat_format(study, model)
    engine = Engine(
        tuned,
        form.stop_ids(tokenizer),
        rows=study.respond.batch,
        queue=queue,
        tell=tell,
    )
    marks = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    context = min(CONTEXT, tuned.config.max_position_embeddings)
    return Served(engine, tokenizer, form, context, shape_of(tuned.config).parameters, marks)


class House:
    """The loaded models of one server, and how a chat becomes a reply."""

    def __init__(self, study: Study, models: Sequence[str], queue: int, seconds: float) -> None:
        self.study, self.models, self.queue, self.seconds = study, models, queue, seconds
        self.served: dict[str, Served] = {}
        self.engines: dict[str, Engine] = {}
        self.metrics = Metrics(self.engines)
        self.encoding = ThreadPoolExecutor(1, "encoding")  # one thread: a chat template keeps state while it is rendered

    async def load(self) -> None:
        """Load all models, one after the other."""
        loop = asyncio.get_running_loop()

        def tell(told: Told) -> None:
            if told:
                with suppress(RuntimeError):  # the server has ended
                    loop.call_soon_threadsafe(hand_out, told)

        for model in self.models:
            served = await asyncio.to_thread(opened, self.study, model, self.queue, tell)
            self.served[model], self.engines[model] = served, served.engine

    @property
    def ready(self) -> bool:
        """Whether all models are loaded."""
        return len(self.served) == len(self.models)

    @property
    def healthy(self) -> bool:
        """Whether every loaded model can still write."""
        return all(engine.thread.is_alive() for engine in self.engines.values())

    def names(self) -> list[tuple[str, str, str]]:
        """The served arms: name, model, arm."""
        return [(served_name(model, arm), model, arm) for model in self.models for arm in self.study.arms(model)]

    async def reply(self, asked: ChatRequest) -> tuple[str, Served, Reply]:
        """Encode a chat and let its reply wait for its turn; returns the arm's name too."""
        deadline = time.monotonic() + self.seconds
        offer = next((entry for entry in self.names() if entry[0] == asked.model), None)
        if offer is None:
            raise invalid("there is no model with that name; /v1/models lists the models", "model_not_found", 404)
        name, model, arm = offer
        if model not in self.served:
            raise Refusal(503, "this model is still being loaded", "server_error", "loading", retry_s=5)
        served = self.served[model]
        chat = asked.chat
        for mark in served.marks:
            if any(mark in message["content"] for message in chat):
                raise invalid(f"a message contains {mark}, a token of this model's chat format")
        loop = asyncio.get_running_loop()
        ids = await loop.run_in_executor(self.encoding, prompt, served.tokenizer, served.form, chat)
        reply = Reply(self.wish(asked, served, ids, tuned=arm == "tuned", deadline=deadline), served.tokenizer)
        try:
            served.engine.ask(reply)
        except Full:
            raise Refusal(429, "the model's queue is full; try again", "rate_limit_error", "queue_full", retry_s=1) from None
        except Closing:
            raise Refusal(503, "the server is shutting down", "server_error", "closing", retry_s=5) from None
        return name, served, reply

    def wish(self, asked: ChatRequest, served: Served, ids: list[int], *, tuned: bool, deadline: float) -> Asked:
        """The request to the engine; where the client's request is silent, the study's own settings hold."""
        room = served.context - len(ids)
        if room < 1:
            raise invalid(
                f"the chat has {len(ids)} tokens; this model reads at most {served.context - 1}", "context_length_exceeded", 413
            )
        options = self.study.respond
        temperature = options.sampling.temperature if asked.temperature is None else asked.temperature
        top_k = options.sampling.top_k if asked.top_k is None else asked.top_k
        top_p = options.sampling.top_p if asked.top_p is None else asked.top_p
        return Asked(
            prompt=ids,
            tuned=tuned,
            limit=min(room, asked.max_completion_tokens or asked.max_tokens or options.max_new_tokens),
            temperature=temperature if temperature >= COLDEST and top_p > 0 else 0.0,
            top_k=top_k if top_k > 0 else sys.maxsize,  # as vLLM: 0 and -1 leave all tokens
            top_p=top_p,
            seed=secrets.randbits(32) if asked.seed is None else asked.seed % 2**64,
            stop=asked.stops,
            deadline=deadline,
        )


def hand_out(told: Told) -> None:
    """Give each reply's reader the new pieces; runs in the event loop."""
    for reply, piece in told:
        reply.pieces.put_nowait(piece)


class Reading:
    """One client reading one reply: counts it, and tells the engine when the client leaves."""

    def __init__(self, house: House, name: str, served: Served, reply: Reply) -> None:
        self.house, self.name, self.served, self.reply = house, name, served, reply
        self.began, self.heard = time.monotonic(), False
        self.finish: Finish = "left"

    async def piece(self) -> Piece:
        """The next piece, with everything that has come by now; its finish is `stop` or `length`, or a Refusal is raised."""
        piece = await self.reply.pieces.get()
        text = piece.text
        while not piece.finish and not self.reply.pieces.empty():
            piece = self.reply.pieces.get_nowait()
            text += piece.text
        if text and not self.heard:
            self.heard = True
            self.house.metrics.first.labels(self.name).observe(time.monotonic() - self.began)
        if piece.finish:
            self.finish = piece.finish
            if refusal := broken(piece.finish):
                raise refusal
        return Piece(text, piece.finish)

    def used(self) -> dict[str, int]:
        """How many tokens were read and written, without the one that ended the reply."""
        return usage(len(self.reply.asked.prompt), len(self.reply.text.ids))

    async def whole(self) -> tuple[str, str]:
        """The whole reply and why it ended."""
        finish = None
        while finish is None:
            finish = (await self.piece()).finish
        return self.reply.text.whole(), finish

    async def events(self, answer: Answer) -> AsyncIterator[bytes]:
        """The reply as server-sent events."""
        yield answer.chunk({"role": "assistant", "content": ""})
        try:
            finish = None
            while finish is None:
                piece = await self.piece()
                finish = piece.finish
                if piece.text:
                    yield answer.chunk({"content": piece.text})
            yield answer.chunk({}, finish) + answer.last(self.used())
        except Refusal as refusal:  # too late for a status
            yield event(refusal.body.model_dump())

    def end(self) -> None:
        """End the reading: the client has the whole reply, or has left."""
        self.served.engine.leave(self.reply)
        self.house.metrics.replies.labels(self.name, self.finish).inc()
        self.house.metrics.seconds.labels(self.name).observe(time.monotonic() - self.began)


class Stream(StreamingResponse):
    """A reply as server-sent events; however it ends, its reading ends too."""

    def __init__(self, reading: Reading, answer: Answer) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(reading.events(answer), media_type="text/event-stream", headers=headers)
        self.reading = reading

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until the last or until the client leaves."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.reading.end()


async def unless_left(request: Request, reading: Reading) -> tuple[str, str] | None:
    """The whole reply and why it ended; None if the client has left before."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    replying, leaving = asyncio.create_task(reading.whole()), asyncio.create_task(gone())
    try:
        await asyncio.wait((replying, leaving), return_when=asyncio.FIRST_COMPLETED)
        return await replying if replying.done() else None
    finally:
        replying.cancel()
        leaving.cancel()
        reading.end()


def application(house: House, failed: Callable[[Exception], None]) -> FastAPI:
    """The HTTP side: routes, and errors in OpenAI's shape. `failed` is told why a model could not be loaded."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async def loading() -> None:
            try:
                await house.load()
            except Exception as error:  # `serve` raises it when the server has ended
                failed(error)

        task = asyncio.create_task(loading())
        yield
        task.cancel()
        for engine in house.engines.values():
            await asyncio.to_thread(engine.close)

    app = FastAPI(title="MI-LLM model server", lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        headers = {} if refusal.retry_s is None else {"Retry-After": str(refusal.retry_s)}
        return JSONResponse(refusal.body.model_dump(), refusal.status, headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return await refused(request, invalid(described(error.errors())))

    @app.exception_handler(HTTPException)
    async def missed(request: Request, error: HTTPException) -> JSONResponse:
        answer = await refused(request, invalid(str(error.detail), status=error.status_code))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def surprised(request: Request, _: Exception) -> JSONResponse:
        return await refused(request, Refusal(500, "internal error; the request may be correct", "server_error"))

    @app.get("/health", responses=ERRORS)
    async def health() -> dict[str, str]:
        """Whether the server lives: every loaded model can write."""
        if not house.healthy:
            raise Refusal(503, "a model's thread has ended", "server_error")
        return {"status": "ok"}

    @app.get("/ready", responses=ERRORS)
    async def ready() -> dict[str, list[str]]:
        """Whether all models are loaded."""
        if not house.ready:
            raise Refusal(503, f"loaded: {len(house.served)} of {len(house.models)} models", "server_error", "loading", retry_s=5)
        return {"ready": [name for name, _, _ in house.names()]}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(house.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", responses=ERRORS)
    async def models() -> dict[str, Any]:
        """The arms of all loaded models."""
        entry = {"object": "model", "created": 0, "owned_by": house.study.name}
        loaded = [(name, house.served[model]) for name, model, _ in house.names() if model in house.served]
        return {"object": "list", "data": [{"id": name, **entry, "parameters": served.parameters} for name, served in loaded]}

    @app.post("/v1/chat/completions", responses=ERRORS | EVENTS, response_model=None)
    async def completions(asked: ChatRequest, request: Request) -> Response:
        """The next turn of a chat, whole or as server-sent events."""
        reading = Reading(house, *await house.reply(asked))
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        answer = Answer(reading.name, with_usage=with_usage)
        if asked.stream:
            return Stream(reading, answer)
        answered = await unless_left(request, reading)
        if answered is None:
            return Response(status_code=499)
        return JSONResponse(answer.completion(*answered, reading.used()))

    return app


class Listener(uvicorn.Server):
    """uvicorn's server, which on a signal finishes the open replies and then ends with status 0."""

    def __init__(self, config: uvicorn.Config, house: House) -> None:
        super().__init__(config)
        self.house = house

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT: finish the open replies; the second time, end at once."""
        self.force_exit = self.should_exit
        self.should_exit = True
        for engine in self.house.engines.values():
            engine.end(time.monotonic() + GRACE)


def check(study: Study, models: Sequence[str]) -> None:
    """Raise Problem if a model has not been trained here."""
    for model in models:
        for path in (checkpoint(study, model), *adapters(study, model)):
            if not path.is_dir():
                stage = path.relative_to(study.folder).parts[0]
                raise Problem(
                    str(path), "not here", f"the output of stage {stage}", f"run the study first, or mi-llm {stage} {model}"
                )


def serve(study: Study, models: Sequence[str], host: str, port: int, *, queue: int, seconds: float) -> None:
    """Serve the models until SIGTERM or SIGINT; at most `queue` replies wait for a model, each takes at most `seconds`."""
    check(study, models)
    prepare_torch(study)
    house = House(study, models, queue, seconds)
    problems: list[Exception] = []

    def failed(error: Exception) -> None:
        problems.append(error)
        server.should_exit = True

    def count_answer(path: str, status: int) -> None:
        label = path if path in ("/health", "/ready", "/metrics", "/v1/models", "/v1/chat/completions") else "other"
        house.metrics.requests.labels(label, str(status)).inc()

    token = os.environ.get(TOKEN) or None
    door = Door(application(house, failed), token, host.lower(), count_answer)
    server = Listener(configured(door, timeout_graceful_shutdown=int(GRACE) + 1), house)
    listener = listen(host, port)
    address = listener.getsockname()
    if not loopback(host) and token is None:
        print(f"Anybody who can reach this address may use the models; set {TOKEN} to require a token.", file=sys.stderr)
    print(f"{study.name}: {', '.join(name for name, _, _ in house.names())}", file=sys.stderr)
    print(f"serving at http://{host}:{address[1]}/v1 (ready when /ready says so)", file=sys.stderr, flush=True)
    server.run(sockets=[listener])
    if problems:
        raise problems[0]
