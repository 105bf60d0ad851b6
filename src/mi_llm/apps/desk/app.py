"""The desk's pages and the route for changes, as a FastAPI application over what `packets.read` read and the store holds.

A request without a session, with a guessed link, or for another's packet gets the same answer: there is no such page.
"""

import sqlite3
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from mi_llm.apps import web
from mi_llm.apps.desk import agreement, overview, saving, settling
from mi_llm.apps.desk.desk_texts import KEY_HELP, KEYS, SCRIPT, WORDS
from mi_llm.apps.desk.drift import KAPPA, drift
from mi_llm.apps.desk.store import SESSION_DAYS, Desk, Part, Store
from mi_llm.codebook.coding import BEHAVIORS, GLOBALS, THRESHOLDS, Global, rating
from mi_llm.codebook.consensus import differences
from mi_llm.codebook.packets import COORDINATOR, Packets
from mi_llm.codebook.tables import ANSWERS, Coding
from mi_llm.miti.summary import SUMMARIES

SITE = web.Site(__package__, WORDS, forms="'none'")
SITE.templates.policies["json.dumps_kwargs"] = {"ensure_ascii": False}  # keys in the codebook's order
SITE.templates.globals.update(behaviors=BEHAVIORS, keys=KEYS, key_help=KEY_HELP, globals=GLOBALS, answers=ANSWERS)


@dataclass(frozen=True)
class Opened:
    """What the desk's routes work on: packets, database, whether training comes first, and the κ below which to warn."""

    packets: Packets
    store: Store
    training_first: bool
    threshold: float


def create(packets: Packets, store: Store, *, training_first: bool = False, threshold: float = KAPPA) -> FastAPI:
    """The application; see `serve` for the options."""
    opened = Opened(packets, store, training_first, threshold)
    app = SITE.application()
    app.add_exception_handler(404, missing)
    app.add_exception_handler(405, missing)
    app.add_exception_handler(sqlite3.OperationalError, unwritable)
    coordinator_pages(app, opened)
    desk_pages(app, opened)
    return app


def desk_pages(app: FastAPI, opened: Opened) -> None:
    """Routes of signing in, a rater's list, the coding page and its changes; `/health` for whoever runs the desk."""
    packets, store = opened.packets, opened.store

    @app.get("/health")
    def health() -> Response:
        return PlainTextResponse("open\n")

    @app.get("/in/{token}")
    def enter(request: Request, token: str) -> Response:
        session = store.enter(token)
        if session is None:
            raise HTTPException(404)
        answer = RedirectResponse("/", 303)
        web.set_cookie(request, answer, "session", session, SESSION_DAYS * 86400)
        return answer

    @app.get("/")
    def first(request: Request) -> Response:
        person = signed_in(request, packets, store)
        if person == COORDINATOR:
            return coordinator(request, opened)
        if person:
            return rater_page(request, opened, person)
        if request.headers.get("sec-fetch-site") == "cross-site":
            # a strict cookie does not travel with a redirect that began on another site (web mail); with this page's it does
            return SITE.page(request, "entering.html.jinja")
        raise HTTPException(404)

    @app.get("/{part}/{name}")
    def coding(request: Request, part: str, name: str) -> Response:
        return coding_page(request, opened, own(request, opened, part, name))

    @app.get("/{part}/{name}/state")
    def state(request: Request, part: str, name: str) -> Response:
        return JSONResponse(current(packets, store, own(request, opened, part, name)))

    @app.post("/{part}/{name}/changes")
    async def changes(request: Request, part: str, name: str) -> Response:
        if not web.own_origin(request):
            return PlainTextResponse("from another site", 403)
        desk = await run_in_threadpool(own, request, opened, part, name)
        try:
            sent = saving.Changes.model_validate_json(await request.body())
        except ValidationError as error:
            long = any(problem["type"] == "string_too_long" for problem in error.errors())
            return PlainTextResponse("too long" if long else "not a list of changes", 413 if long else 422)
        if sent.rater != desk.rater:
            return PlainTextResponse("somebody else is signed in", 409)
        outcomes = await run_in_threadpool(saving.save, store, packets, desk, sent.changes)
        return JSONResponse([outcome.model_dump(mode="json") for outcome in outcomes])


def coordinator_pages(app: FastAPI, opened: Opened) -> None:
    """Routes of the export, of settling differences, and of opening a packet again; the coordinator's page itself is `/`."""
    packets, store = opened.packets, opened.store

    def finished(request: Request, name: str) -> dict[str, list[Coding]]:
        """The codings of one finished packet, for the coordinator; raises 404 for everything else."""
        codings = agreement.finished(packets, store.states()) if signed_in(request, packets, store) == COORDINATOR else {}
        if name not in codings:
            raise HTTPException(404)
        return {name: codings[name]}

    def settle(name: str, codings: list[Coding], decision: settling.Decision) -> Response:
        item = next((item for item in differences(codings) if settling.item_name(item) == decision.item), None)
        if item is None or isinstance(decision.value, int) != isinstance(item, Global):
            return PlainTextResponse("nothing to settle", 409)
        store.settle(name, decision.item, {
            "value": decision.value, "reason": decision.reason, "of": settling.given(codings, item),
        })  # fmt: skip
        return PlainTextResponse("settled")

    @app.get("/settle/{name}")
    def settling_page(request: Request, name: str) -> Response:
        codings = finished(request, name)[name]
        items = differences(codings)
        settled = settling.decisions({name: codings}, store.states())
        return SITE.page(
            request, "settle.html.jinja", packet=packets.study[name], raters=packets.sharing(name), codings=codings,
            open_items={settling.item_name(item): settling.given(codings, item) for item in items},
            settled={settling.item_name(item): decision for (_, item), decision in settled.items()},
            data=script_data(request, path=f"/settle/{name}"),
        )  # fmt: skip

    @app.post("/settle/{name}")
    async def settled(request: Request, name: str) -> Response:
        if not web.own_origin(request):
            return PlainTextResponse("from another site", 403)
        codings = (await run_in_threadpool(finished, request, name))[name]
        try:
            decision = settling.Decision.model_validate_json(await request.body())
        except ValidationError:
            return PlainTextResponse("no decision with a reason", 422)
        return await run_in_threadpool(settle, name, codings, decision)

    @app.post("/reopen/{name}")
    async def reopened(request: Request, name: str) -> Response:
        if not web.own_origin(request):
            return PlainTextResponse("from another site", 403)
        await run_in_threadpool(finished, request, name)
        try:
            sent = settling.Reopening.model_validate_json(await request.body())
        except ValidationError:
            return PlainTextResponse("no rater with a reason", 422)
        if sent.rater not in packets.sharing(name):
            return PlainTextResponse("nobody who codes it", 422)
        await run_in_threadpool(store.reopen, name, sent.rater, sent.reason)
        return PlainTextResponse("reopened")

    @app.get("/export/{name}")
    def export(request: Request, name: str) -> Response:
        if signed_in(request, packets, store) != COORDINATOR:
            raise HTTPException(404)
        files = agreement.export(packets, store.states())
        if name not in files:
            raise HTTPException(404)
        disposition = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(files[name], media_type="text/csv; charset=utf-8", headers=disposition)


def signed_in(request: Request, packets: Packets, store: Store) -> str | None:
    """Who sent a request: a rater that the packets know, the coordinator, or None."""
    session = request.cookies.get("session")
    person = store.person(session) if session else None
    return person if person == COORDINATOR or person in packets.raters else None


def own(request: Request, opened: Opened, part: str, name: str) -> Desk:
    """The packet that a request is about, if it is the rater's and open to them; raises 404 for everything else."""
    packets, store = opened.packets, opened.store
    person = signed_in(request, packets, store)
    if person is not None and person in packets.raters:
        trained = not (opened.training_first and part == "packets" and agreement.locked(packets, store.states(), person))
        if part == "packets" and name in packets.raters[person] and trained:
            return Desk(person, "packets", name)
        if part == "training" and name in packets.training:
            return Desk(person, "training", name)
    raise HTTPException(404)


async def missing(request: Request, _: Exception) -> Response:
    """One page for what does not exist and for what is not the visitor's."""
    answer = SITE.page(request, "missing.html.jinja", status=404)
    answer.headers["Cache-Control"] = "no-store"  # below /static/ too
    return answer


async def unwritable(request: Request, error: Exception) -> Response:
    """The answer when the disk is full or gone: the browser keeps its changes and tries again; the terminal shows the reason."""
    print(f"mi-llm desk: nothing could be saved: {error}", file=sys.stderr)
    return PlainTextResponse("not saved", 503)


def rater_page(request: Request, opened: Opened, rater: str) -> Response:
    """A rater's transcripts, how far each is, and the training."""
    packets, store = opened.packets, opened.store
    states = store.states()

    def rows(part: Part, names: Any) -> list[agreement.Progress]:
        desks = [Desk(rater, part, name) for name in names]
        return [agreement.progress(saving.packet_of(packets, desk), desk, store.state(desk)) for desk in desks]

    result = agreement.training(packets, states, rater, packets.training)
    locked = opened.training_first and agreement.locked(packets, states, rater)
    pace = overview.pace(packets, states, store.work(), rater)
    part: Part = "packets" if pace.done or pace.begun else "training"  # whoever codes already is not sent back
    return SITE.page(
        request, "rater.html.jinja", rater=rater, locked=locked, rows=rows("packets", packets.raters[rater]),
        exercises=rows("training", packets.training), result=result, data=script_data(request, rater=rater),
        following=overview.upcoming(packets, states, rater, part), pace=pace,
    )  # fmt: skip


def coding_page(request: Request, opened: Opened, desk: Desk) -> Response:
    """One transcript to be coded."""
    packets, store = opened.packets, opened.store
    states = store.states()
    part: Part = "training" if desk.part == "training" else "packets"
    result = agreement.training(packets, states, desk.rater, [desk.packet]) if part == "training" else None
    names = tuple(packets.training) if part == "training" else packets.raters[desk.rater]
    pace = overview.pace(packets, states, store.work(), desk.rater)
    rest = pace.total - pace.done - (part == "packets" and not overview.finished(states, desk))
    data = script_data(
        request, **current(packets, store, desk), keys=KEYS, covers=agreement.covers(),
        names={str(entry.code): getattr(entry.name, web.language(request)) for entry in (*BEHAVIORS, *GLOBALS)},
    )  # fmt: skip
    return SITE.page(
        request, "coding.html.jinja", desk=desk, packet=saving.packet_of(packets, desk), result=result, data=data,
        place=names.index(desk.packet) + 1, total=len(names), left=pace.minutes and pace.minutes * rest,
        following=overview.upcoming(packets, states, desk.rater, part, desk.packet),
    )  # fmt: skip


def current(packets: Packets, store: Store, desk: Desk) -> dict[str, Any]:
    """A packet's present state for the page's script: items with value and version, and what can be undone."""
    state = store.state(desk)
    return {
        "rater": desk.rater,
        "path": f"/{desk.part}/{desk.packet}",
        "items": {item: {"value": held.value, "version": held.version} for item, held in state.items()},
        "history": store.history(desk),
        "gold": saving.gold_shown(packets, desk, state),
    }


def script_data(request: Request, **data: Any) -> dict[str, Any]:
    """What a page hands to its script."""
    tongue = web.language(request)
    return {**data, "lang": tongue, "words": SITE.said(SCRIPT, tongue)}


def coordinator(request: Request, opened: Opened) -> Response:
    """The coordinator's page: everybody's progress, and of released packets agreement, scores, differences, notes, and export."""
    packets, store = opened.packets, opened.store
    states = store.states()
    changes = drift(packets, states, store.finished())
    work = store.work()
    to_settle = settling.to_settle(agreement.finished(packets, states), states)
    return SITE.page(
        request, "coordinator.html.jinja", paces={rater: overview.pace(packets, states, work, rater) for rater in packets.raters},
        trained={rater: agreement.training(packets, states, rater, packets.training) for rater in packets.raters},
        training=len(packets.training),
        exceptions=overview.exceptions(packets, states, work, opened.threshold, datetime.now(UTC)),
        released=agreement.released(packets, states), total=len(packets.study),
        pairs=agreement.reliability(packets, states), notes=agreement.notes(packets, states), drift=changes,
        threshold=opened.threshold, warnings=changes.below(opened.threshold), log=store.reopenings(), to_settle=to_settle,
        scores=agreement.scores(packets, states), summaries=SUMMARIES, thresholds=THRESHOLDS, rating=rating,
    )  # fmt: skip
