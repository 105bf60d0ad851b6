"""The screening pages, as a FastAPI application: the index of transcribed dialogs, and each beside its original.

For people at this machine. Works without script; with it, keys decide. Every decision goes into the study's `decisions.csv` at
once, and each page is made from what that file says now, so that it may be edited beside.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from threading import Lock
from urllib.parse import parse_qs, urlencode

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool

from mi_llm import storage
from mi_llm.apps import web
from mi_llm.apps.screening.screening_texts import WORDS
from mi_llm.construct.screen import (
    Decision,
    Examined,
    corrected_file,
    decide,
    decisions,
    examined,
    labeled_turns,
    segments,
)
from mi_llm.dialog import Dialog, read_dialogs
from mi_llm.language import language
from mi_llm.language.language import Language
from mi_llm.problem import Problem
from mi_llm.study import Study

SITE = web.Site(__package__, WORDS, forms="'self'", headers={"Referrer-Policy": "same-origin"})  # else forms have no origin
SITE.templates.globals.update(segments=segments)
SHOWN = ("open", "remarks", "keep", "drop", "fix", "all")
PORTION = 100  # rows of the index


@dataclass(frozen=True)
class View:
    """Which dialogs a person goes through: those that `show` names, all of them or every other one."""

    show: str
    half: int

    @classmethod
    def of(cls, request: Request) -> "View":
        """The view that an address asks for."""
        show, half = request.query_params.get("show", "open"), request.query_params.get("half", "0")
        return cls(show if show in SHOWN else "open", int(half) if half in ("1", "2") else 0)

    @property
    def query(self) -> str:
        """The view as the end of an address."""
        return urlencode({"show": self.show, "half": self.half})


@dataclass
class Screening:
    """The study's transcribed dialogs, those with remarks first, and where decisions about them are kept."""

    study: Study
    lock: Lock = field(default_factory=Lock)

    @cached_property
    def dialogs(self) -> list[Examined]:
        """The dialogs as the checks see them; raises Problem before `transcribe` has run."""
        path = self.study.path("transcribe", "transcribed.jsonl")
        if not path.exists():
            remedy = f"run the stage before it: mi-llm transcribe --study {self.study.params}"
            raise Problem(str(path), "missing", "the transcribed dialogs", remedy)
        return sorted((examined(self.study, entry) for entry in storage.read_lines(path)), key=lambda dialog: not dialog.reasons)

    @cached_property
    def originals(self) -> dict[str, Dialog]:
        """The dialogs that were rewritten, by the rewriting's name."""
        sources = {dialog.entry["source"] for dialog in self.dialogs if dialog.entry["key"] is not None}
        paths = {source: self.study.path("read", source, "dialogs.jsonl") for source in sorted(sources)}
        return {
            f"{source}/{dialog.id}": dialog for source, path in paths.items() if path.exists() for dialog in read_dialogs(path)
        }

    @property
    def speech(self) -> Language:
        """The language of the dialogs."""
        return language.load(self.study.language)

    @property
    def folder(self) -> Path:
        """Where the study keeps a person's decisions."""
        return Path(self.study.screen.decisions)

    @cached_property
    def names(self) -> set[str]:
        """The dialogs' names."""
        return {dialog.name for dialog in self.dialogs}

    def decided(self) -> dict[str, Decision]:
        """What persons decided so far."""
        return decisions(self.folder, self.names)

    def numbers(self, view: View, decided: dict[str, Decision]) -> list[int]:
        """The numbers, from 1, of the dialogs in a view."""

        def fits(dialog: Examined) -> bool:
            decision = decided.get(dialog.name)
            match view.show:
                case "open":
                    return decision is None
                case "remarks":
                    return bool(dialog.reasons)
                case "all":
                    return True
            return decision is not None and decision.decision == view.show

        return [
            number
            for number, dialog in enumerate(self.dialogs, 1)
            if fits(dialog) and (not view.half or number % 2 == view.half % 2)
        ]

    def save(self, dialog: Examined, decision: Decision | None, text: str = "") -> None:
        """Write a decision, for `fix` with the corrected text; None takes it back. Raises Problem for a text without dialog."""
        with self.lock:
            if decision is not None and decision.decision == "fix":
                path = corrected_file(self.folder, dialog.name)
                labeled_turns(text, path, self.speech)
                storage.write_text(path, text)
            decide(self.folder, self.names, dialog.name, decision)


def labeled(dialog: Examined, speech: Language) -> str:
    """A rewriting as text to correct: one volley per line, after its label."""
    return "".join(f"{speech.labeled[turn.role]}{speech.colon}{' '.join(turn.text.split())}\n" for turn in dialog.turns)


def following(numbers: Sequence[int], number: int) -> int | None:
    """The next number of a view after this one, from the beginning again at its end; None where there is no other."""
    others = [other for other in numbers if other != number]
    return next((other for other in others if other > number), others[0] if others else None)


def preceding(numbers: Sequence[int], number: int) -> int | None:
    """The number before this one in a view; None at its beginning."""
    return max((other for other in numbers if other < number), default=None)


def create(study: Study) -> FastAPI:
    """The application. Raises Problem where there is nothing to decide on yet, or `decisions.csv` is wrong."""
    screening = Screening(study)
    screening.decided()
    app = SITE.application()
    app.add_exception_handler(Problem, lambda request, problem: PlainTextResponse(str(problem), 409))

    def dialog_of(request: Request, number: int) -> Examined:
        if not web.known_host(request.headers.get("host", "")) or not 0 < number <= len(screening.dialogs):
            raise HTTPException(404)
        return screening.dialogs[number - 1]

    @app.get("/")
    def index(request: Request) -> Response:
        if not web.known_host(request.headers.get("host", "")):
            raise HTTPException(404)
        view, decided = View.of(request), screening.decided()
        numbers = screening.numbers(view, decided)
        start = int(text) if (text := request.query_params.get("from", "0")).isdecimal() and len(text) < 7 else 0
        return SITE.page(
            request,
            "index.html.jinja",
            view=view,
            shown=SHOWN,
            counts={show: len(screening.numbers(View(show, view.half), decided)) for show in SHOWN},
            rows=[(number, screening.dialogs[number - 1]) for number in numbers[start : start + PORTION]],
            start=start,
            portion=PORTION,
            numbers=numbers,
            decided=decided,
            study=study,
            first_open=next(iter(screening.numbers(View("open", view.half), decided)), None),
        )

    def dialog_page(request: Request, number: int, *, fault: str = "", text: str | None = None, status: int = 200) -> Response:
        dialog, view, decided = dialog_of(request, number), View.of(request), screening.decided()
        numbers = screening.numbers(view, decided)
        own = screening.numbers(View("all", view.half), decided)
        path = corrected_file(screening.folder, dialog.name)
        return SITE.page(
            request,
            "dialog.html.jinja",
            status,
            dialog=dialog,
            number=number,
            view=view,
            original=screening.originals.get(dialog.name),
            decision=decided.get(dialog.name),
            far=(sum(screening.dialogs[other - 1].name in decided for other in own), len(own)),
            following=following(numbers, number),
            preceding=preceding(numbers, number),
            fault=fault,
            text=text or (path.read_text(encoding="utf-8") if path.exists() else labeled(dialog, screening.speech)),
            speech=screening.speech,
            who=request.cookies.get("who", ""),
        )

    @app.get("/dialogs/{number}")
    def show(request: Request, number: int) -> Response:
        return dialog_page(request, number)

    @app.post("/dialogs/{number}")
    async def choose(request: Request, number: int) -> Response:
        dialog = dialog_of(request, number)
        if not web.own_origin(request):
            raise HTTPException(403)
        sent = {name: values[-1].strip() for name, values in parse_qs((await request.body()).decode("utf-8", "replace")).items()}
        verb, who = sent.get("decision", ""), " ".join(sent.get("who", "").split())[:60]
        text = sent.get("text", "").replace("\r\n", "\n") + "\n"
        if verb not in ("keep", "drop", "fix", "undo"):
            raise HTTPException(422)
        if verb != "undo" and not who:
            return dialog_page(request, number, fault="who_missing", status=422)
        when = date.today().isoformat()
        decision = None if verb == "undo" else Decision(verb, " ".join(sent.get("reason", "").split()), who, when)
        view = View.of(request)
        try:
            before = screening.numbers(view, screening.decided())
            await run_in_threadpool(screening.save, dialog, decision, text)
        except Problem as problem:
            return dialog_page(request, number, fault=str(problem), text=text, status=422)
        following_number = number if verb == "undo" else following(before, number)
        where = f"/dialogs/{following_number}?{view.query}" if following_number else f"/?{view.query}"
        answer = RedirectResponse(where, 303)
        if who:
            web.set_cookie(request, answer, "who", who, 365 * 86400)
        return answer

    return app
