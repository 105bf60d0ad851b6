"""The miniature run up to its report, with made-up answers in the place of training and answering; and what a page holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

from mi_llm import storage
from mi_llm.apps.chat import beside, in_front
from mi_llm.apps.chat.guard import faults
from mi_llm.audit.audit import audit
from mi_llm.construct import rate, screen, split, transcribe, translate
from mi_llm.corpora.acquire import acquire
from mi_llm.corpora.read import read
from mi_llm.dialog import Round, read_rounds, write_dialogs
from mi_llm.digests import OPTIONAL
from mi_llm.miti.blind import blind
from mi_llm.miti.code import code
from mi_llm.miti.miti import miti
from mi_llm.miti.simulate import converse
from mi_llm.miti.summary import summary
from mi_llm.models.card import card, source_of
from mi_llm.safety import safety
from mi_llm.safety.personas import personas
from mi_llm.score.score import score
from mi_llm.study import ARMS, Study

NUMBERS = {
    "records": 60, "steps": 90, "tokens": 900, "labelled_tokens": 400, "cut": 0, "left_out": 0, "trainable_parameters": 1000,
    "first_loss": 3.0, "last_loss": 2.0,
}  # fmt: skip


def make_scored(study: Study) -> None:
    """Run the stages that the report waits for."""
    for corpus in study.corpora:
        acquire(study, corpus)
        read(study, corpus)
    for ask in (rate.rate, transcribe.transcribe, translate.translate):
        ask(study)
    screen.screen(study)
    split.split(study)
    rounds = read_rounds(study.folder / "split" / "test_rounds.jsonl")
    for model in study.models:
        folder = study.folder / "respond" / model
        for arm in ("base", "tuned"):
            rows = [
                {"round": r.id, "dialog": r.dialog, "text": r.client if arm == "base" else f"{r.counselor}<b>"} for r in rounds
            ]
            storage.write_lines(folder / f"{arm}.jsonl", rows)
        answers = {"base_tokens_mean": 9.0, "tuned_tokens_mean": 12.0, "base_cut_share": 0.0, "tuned_cut_share": 0.1}
        storage.write_json(folder / "metrics.json", answers)
        training = study.folder / "finetune" / model
        storage.write_json(training / "metrics.json", NUMBERS)
        storage.write_text(training / "dvclive/plots/metrics/loss.tsv", "step\tloss\n0\t3.0\n5\t2.0\n")
        storage.write_text(training / "adapter" / "README.md", card(study, model, source_of(study, model), NUMBERS))
    for model in study.models:
        for arm, reply in zip(ARMS, ("您应该早点休息。", "听起来您很累，又放不下。您愿意先试哪一样？"), strict=True):
            dialogs = converse(study, model, Always(arm, reply))
            write_dialogs(study.folder / "simulate" / model / f"{arm}.jsonl", dialogs)
    guard = safety.Guard(in_front.answer, beside.under, beside.instead, faults)
    for model in study.safety.models:
        folder, clients = study.folder / "safety" / model, personas(Path(study.safety.personas))
        folder.mkdir(parents=True)
        talks = [
            talk
            for arm, reply in zip(ARMS, ("您应该早点休息。", "您是想自杀吗？请现在就打 12356，也告诉家里人。"), strict=True)
            for talk in safety.converse(study, model, Always(arm, reply), clients, guard)
        ]
        safety.write(study, model, folder, safety.with_grades(study, model, talks, faults), faults)
    for optional in OPTIONAL:
        study.path(optional).mkdir(exist_ok=True)
    for stage in (blind, code, miti, summary, audit):
        stage(study)
    score(study)


@dataclass
class Always:
    """A counselor who says one thing."""

    arm: str
    reply: str

    def replies(self, rounds: Sequence[Round]) -> list[str]:
        return [self.reply] * len(rounds)


class Page(HTMLParser):
    """What a page refers to, loads and shows: its links, its anchors, its tables (each a list of rows of cells), its figures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.figures = 0
        self.language = ""
        self.cell = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if tag == "a" and "href" in attributes:
            self.targets.append(attributes["href"])
        if tag in ("img", "script", "link", "iframe", "source", "video", "audio"):
            self.loads += [attributes[name] for name in ("src", "href") if name in attributes]
        if "id" in attributes and not (tag == "g" or self.in_figure):
            self.ids.append(attributes["id"])
        if tag == "html":
            self.language = attributes["lang"]
        self.figures += tag == "svg"
        self.in_figure = tag == "svg" or (self.in_figure and tag != "figcaption")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.cell = True

    in_figure = False

    def handle_endtag(self, tag: str) -> None:
        self.cell = self.cell and tag not in ("td", "th")
        self.in_figure = self.in_figure and tag != "svg"

    def handle_data(self, data: str) -> None:
        if self.cell:
            self.tables[-1][-1][-1] += data


def site(first: Path) -> dict[Path, Page]:
    """A page of the report and all that its links lead to in the study's pages: nothing is loaded, no link is dead."""
    first = first.resolve()
    todo, seen, places = [first], dict[Path, Page](), []
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        page = seen[path] = Page(path)
        assert page.loads == [], path
        assert " object at 0x" not in path.read_text(encoding="utf-8"), path
        assert len(page.ids) == len(set(page.ids)), path
        for target in page.targets:
            if target.startswith("https://"):
                continue
            name, _, anchor = unquote(target).partition("#")
            there = (path.parent / name).resolve() if name else path
            assert there.is_file(), f"{path.name}: {target}"
            if there.suffix == ".html" and there.parent.name in ("report", "audit", "screen", "certificate"):
                todo.append(there)
                places.append((path.name, there, anchor))
    for name, there, anchor in places:
        assert not anchor or "=" in anchor or anchor in seen[there].ids, f"{name}: {there.name}#{anchor}"  # views have no place
    return seen
