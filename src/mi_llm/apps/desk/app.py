"""The desk's pages and the route for changes, as a FastAPI application over what `packets.read` read and the store holds.

A request without a session, with a guessed link, or for another's packet gets the same answer: there is no such page.
"""

import sqlite3
import sys
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from mi_llm.apps import web
from mi_llm.apps.desk import agreement, saving
from mi_llm.apps.desk.store import SESSION_DAYS, Desk, Part, Store
from mi_llm.apps.desk.words import KEYS, SCRIPT, WORDS
from mi_llm.codebook.coding import BEHAVIOURS, GLOBALS
from mi_llm.codebook.packets import COORDINATOR, Packets
from mi_llm.codebook.tables import ANSWERS

SITE = web.Site(__package__, WORDS, forms="'none'")
SITE.templates.policies["json.dumps_kwargs"] = {"ensure_ascii": False}  # keys in the codebook's order
SITE.templates.globals.update(behaviours=BEHAVIOURS, keys=KEYS, globals=GLOBALS, answers=ANSWERS)


def create(packets: Packets, store: Store) -> FastAPI:
    """The application."""
    app = SITE.application()
    app.add_exception_handler(404, missing)
    app.add_exception_handler(405, missing)
    app.add_exception_handler(sqlite3.OperationalError, unwritable)
    coordinator_pages(app, packets, store)
    desk_pages(app, packets, store)
    return app


def desk_pages(app: FastAPI, packets: Packets, store: Store) -> None:
    """Routes of signing in, a rater's list, the coding page and its changes; `/health` for whoever runs the desk."""

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
            return coordinator(request, packets, store)
        if person:
            return rater_page(request, packets, store, person)
        if request.headers.get("sec-fetch-site") == "cross-site":
            # a strict cookie does not travel with a redirect that began on another site (web mail); with this page's it does
            return SITE.page(request, "entering.html.jinja")
        raise HTTPException(404)

    @app.get("/{part}/{name}")
    def coding(request: Request, part: str, name: str) -> Response:
        return coding_page(request, packets, store, own(request, packets, store, part, name))

    @app.get("/{part}/{name}/state")
    def state(request: Request, part: str, name: str) -> Response:
        return JSONResponse(current(packets, store, own(request, packets, store, part, name)))

    @app.post("/{part}/{name}/changes")
    async def changes(request: Request, part: str, name: str) -> Response:
        if not web.own_origin(request):
            return PlainTextResponse("from another site", 403)
        desk = await run_in_threadpool(own, request, packets, store, part, name)
        try:
            sent = saving.Changes.model_validate_json(await request.body())
        except ValidationError as error:
            long = any(problem["type"] == "string_too_long" for problem in error.errors())
            return PlainTextResponse("too long" if long else "not a list of changes", 413 if long else 422)
        if sent.rater != desk.rater:
            return PlainTextResponse("somebody else is signed in", 409)
        outcomes = await run_in_threadpool(saving.save, store, packets, desk, sent.changes)
        return JSONResponse([outcome.model_dump(mode="json") for outcome in outcomes])


def coordinator_pages(app: FastAPI, packets: Packets, store: Store) -> None:
    """The route of the export; the coordinator's page itself is `/`."""

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


def own(request: Request, packets: Packets, store: Store, part: str, name: str) -> Desk:
    """The packet that a request is about, if it is the rater's; raises 404 for everything else."""
    person = signed_in(request, packets, store)
    if person is not None and person in packets.raters:
        if part == "packets" and name in packets.raters[person]:
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


def rater_page(request: Request, packets: Packets, store: Store, rater: str) -> Response:
    """A rater's transcripts, how far each is, and the training."""

    def rows(part: Part, names: Any) -> list[agreement.Progress]:
        desks = [Desk(rater, part, name) for name in names]
        return [agreement.progress(saving.packet_of(packets, desk), desk, store.state(desk)) for desk in desks]

    result = agreement.training(packets, store.states(), rater, packets.training)
    return SITE.page(
        request, "rater.html.jinja", rater=rater, rows=rows("packets", packets.raters[rater]),
        exercises=rows("training", packets.training), result=result, data=script_data(request, rater=rater),
    )  # fmt: skip


def coding_page(request: Request, packets: Packets, store: Store, desk: Desk) -> Response:
    """One transcript to be coded."""
    result = agreement.training(packets, store.states(), desk.rater, [desk.packet]) if desk.part == "training" else None
    data = script_data(
        request, **current(packets, store, desk), keys=KEYS, covers=agreement.covers(),
        names={str(entry.code): getattr(entry.name, web.language(request)) for entry in (*BEHAVIOURS, *GLOBALS)},
    )  # fmt: skip
    return SITE.page(request, "coding.html.jinja", desk=desk, packet=saving.packet_of(packets, desk), result=result, data=data)


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


def coordinator(request: Request, packets: Packets, store: Store) -> Response:
    """The coordinator's page: everybody's progress; reliability, notes and export of the released packets."""
    states = store.states()

    def row(rater: str, part: Part, name: str) -> agreement.Progress:
        desk = Desk(rater, part, name)
        return agreement.progress(saving.packet_of(packets, desk), desk, states.get(desk, {}))

    progress = {rater: [row(rater, "packets", name) for name in names] for rater, names in packets.raters.items()}
    trained = {rater: agreement.training(packets, states, rater, packets.training) for rater in packets.raters}
    return SITE.page(
        request, "coordinator.html.jinja", progress=progress, trained=trained, training=len(packets.training),
        released=agreement.released(packets, states), total=len(packets.study),
        pairs=agreement.reliability(packets, states), notes=agreement.notes(packets, states),
    )  # fmt: skip
