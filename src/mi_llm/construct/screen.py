"""Stage `screen`: check every transcribed dialog, and let a person decide (paper, Methods, Transcription).

Reads `transcribe/transcribed.jsonl`. Automatic checks propose `keep` or `drop`, with reasons. What words alone cannot decide is a
remark and drops nothing: a reply that shares no word with the client may paraphrase, as complex reflections do. Of dialogs that
are taken as they are, every reason is a remark. A person decides in the study's decisions folder: `decisions.csv`
(`dialog,decision,reason,who,when`, decision `keep`, `drop` or `fix`) and for each `fix` the corrected dialog as text.

Writes `screen/dialogs.jsonl` (what is kept), `screening.csv` (every dialog, every reason, who decided), `proposals.csv` (what is
not decided yet, to be completed by a person), `dialogs.html` and `dialogs.zh.html` (all of it to read) and `metrics.json`.
Nothing is dropped silently. `mi-llm screen --open` is a page to decide on (`apps/screening/`).
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from mi_llm import storage
from mi_llm.codebook.lexical import cues_of
from mi_llm.construct.transcribe import form_faults, turns_of
from mi_llm.corpora.labels import LABEL, ROLES
from mi_llm.dialog import Dialog, Turn, write_dialogs
from mi_llm.frame.pages import AUDIT, SUFFIXES, address, environment, inline, style
from mi_llm.language import language
from mi_llm.language.language import Language
from mi_llm.problem import Problem
from mi_llm.stage import stage
from mi_llm.study import Screen, Study

COLUMNS = ["dialog", "decision", "reason", "who", "when"]
ROWS = ["dialog", "decision", "kinds", "proposal", "seen", "reason", "who", "changed"]  # of screening.csv
AUTOMATIC, AUTHORS = "automatic", "the paper's authors"
REMARKS = ("irrelevant", "against MI")  # kinds of reasons that only a person can judge
REPEATED = re.compile(r"(.{4,}?)\1{2,}")


@dataclass(frozen=True)
class Reason:
    """Why a dialog should be dropped: the kind of fault, as the report counts it, and what was seen."""

    kind: str
    seen: str


@dataclass(frozen=True)
class Decision:
    """What a person decided about a dialog, why, who and when."""

    decision: str
    reason: str
    who: str
    when: str


@dataclass(frozen=True)
class Examined:
    """A transcribed dialog as the checks see it: its volleys, the reasons to drop it, their proposal, what was left out."""

    name: str
    entry: dict[str, Any]
    turns: tuple[Turn, ...]
    reasons: tuple[Reason, ...]
    proposal: Decision
    changed: tuple[str, ...]

    @property
    def one_sided(self) -> bool:
        """Whether one side alone speaks, or nobody."""
        return len({turn.role for turn in self.turns}) < 2

    @property
    def kinds(self) -> list[str]:
        """The kinds of its reasons, each once."""
        return list(dict.fromkeys(reason.kind for reason in self.reasons))


@cache
def terms(code: str, name: Literal["unsafe.txt", "mi_inconsistent.txt"]) -> tuple[str, ...]:
    """The words of a language's file, one per line, in small letters; lines that begin with # are comments."""
    text = storage.read_text(language.load(code).file(name)).lower()
    return tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))


@cache
def personal(code: str) -> dict[str, re.Pattern[str]]:
    """What a dialog in a language must not hold of a person, and how it is found."""
    return {what: re.compile(pattern) for what, pattern in language.load(code).read("personal.yaml").items()}


def reasons(turns: Sequence[Turn], options: Screen, speech: Language) -> Iterator[Reason]:
    """Yield reasons to drop a dialog: its form, the paper's reasons (irrelevant, incoherent, unsafe, against MI), privacy."""
    yield from (Reason("form", seen) for seen in form_faults(turns, options, speech))
    yield from (Reason("incoherent", seen) for seen in incoherent(turns, speech))
    yield from (Reason("repetitive", seen) for seen in repetitive(turns, options.repeated_characters))
    lost = unrelated(turns, speech)
    if lost > options.unrelated_share:
        unit = "word" if speech.spaced else "two characters"
        yield Reason("irrelevant", f"{lost:.0%} of the replies share no {unit} with anything the client said before")
    replies = [turn.text.lower() for turn in turns if turn.role == "counselor"]
    yield from (Reason("unsafe", term) for term in terms(speech.code, "unsafe.txt") if any(term in reply for reply in replies))
    for what, pattern in personal(speech.code).items():
        if any(pattern.search(turn.text) for turn in turns):
            yield Reason("personal data", what)
    cues = [term for reply in replies for term in terms(speech.code, "mi_inconsistent.txt") if term in reply]
    if len(cues) >= options.mi_inconsistent_cues:
        yield Reason("against MI", f"{len(cues)} cues of persuading or confronting: {', '.join(dict.fromkeys(cues))}")


def incoherent(turns: Sequence[Turn], speech: Language) -> Iterator[str]:
    """Broken characters, a speaker's label inside a volley, an end in the middle of a sentence."""
    for turn in turns:
        if "\ufffd" in turn.text or LABEL.search(turn.text):
            yield f"broken characters or a speaker's label inside a volley: {excerpt(turn)}"
    if not turns[-1].text.endswith(tuple(speech.ends)):
        yield f"breaks off: {excerpt(turns[-1])}"


def repetitive(turns: Sequence[Turn], least: int) -> Iterator[str]:
    """A phrase that stutters, or a volley of at least `least` characters that is said again."""
    for turn in turns:
        if match := REPEATED.search(turn.text):
            yield f"“{match[1]}” three times or more in one volley"
    for text, times in Counter(turn.text for turn in turns if len(turn.text) >= least).items():
        if times > 1:
            yield f"said {times} times: “{text[:20]}”"


def excerpt(turn: Turn) -> str:
    """The end of a volley, for a reason."""
    return f"“…{turn.text[-16:]}”"


def unrelated(turns: Sequence[Turn], speech: Language) -> float:
    """The share of replies that have nothing in common with what the client said before; see `units`."""
    client_units: set[str] = set()
    replies = lost = 0
    for turn in turns:
        if turn.role == "client":
            client_units |= units(turn.text, speech)
        else:
            replies += 1
            lost += not units(turn.text, speech) & client_units
    return lost / replies if replies else 0.0


def units(text: str, speech: Language) -> set[str]:
    """A text's words, without those that carry no content; where no spaces stand, its pairs of neighboring letters."""
    if speech.spaced:
        return cues_of(speech.code).content(text)
    pairs = {text[start : start + 2] for start in range(len(text) - 1)}
    return {pair for pair in pairs if all(map(speech.letter.match, pair))}


def segments(turn: Turn, speech: Language) -> list[tuple[str, str]]:
    """A volley in pieces, each with the kind of reason that it shows: `""` for what shows none. Together they are the volley."""
    patterns = [("incoherent", re.compile(f"\ufffd|{LABEL.pattern}", re.IGNORECASE)), ("repetitive", REPEATED)]
    patterns += [("personal data", pattern) for pattern in personal(speech.code).values()]
    if turn.role == "counselor":
        lists = {"unsafe": terms(speech.code, "unsafe.txt"), "against MI": terms(speech.code, "mi_inconsistent.txt")}
        patterns += [(kind, re.compile("|".join(map(re.escape, words)), re.IGNORECASE)) for kind, words in lists.items()]
    spans = sorted((match.start(), match.end(), kind) for kind, pattern in patterns for match in pattern.finditer(turn.text))
    pieces, end = [], 0
    for first, last, kind in spans:
        if first >= end:
            pieces += [(turn.text[end:first], ""), (turn.text[first:last], kind)]
            end = last
    return [piece for piece in [*pieces, (turn.text[end:], "")] if piece[0]]


def decisions(folder: Path, transcribed: Collection[str]) -> dict[str, Decision]:
    """A person's decisions by dialog; {} without the file. Raises Problem for a malformed, unknown or contradictory decision."""
    path = folder / "decisions.csv"
    if not path.exists():
        return {}
    table = csv.DictReader(io.StringIO(storage.read_text(path), newline=""))
    if list(table.fieldnames or ()) != COLUMNS:
        raise Problem(f"{path}, line 1", f"columns {table.fieldnames}", ",".join(COLUMNS), "correct the header")
    made: dict[str, Decision] = {}
    lines: dict[str, int] = {}
    for row in table:
        where = f"{path}, line {table.line_num}"
        name, *rest = ((row[column] or "").strip() for column in COLUMNS)
        decided = Decision(*rest)
        if name not in transcribed:
            raise Problem(where, f"no dialog {name!r}", "a dialog as screening.csv names it", "correct or delete the line")
        if decided.decision not in ("keep", "drop", "fix"):
            raise Problem(where, f"decision {decided.decision!r}", "keep, drop or fix", "correct it")
        if not decided.who or not decided.when:
            raise Problem(where, "who or when is empty", "the initials of the person who decided, and the date", "fill them in")
        if made.setdefault(name, decided) != decided:
            fault = f"{name} is decided otherwise than in line {lines[name]}"
            raise Problem(where, fault, "one decision per dialog", "delete one of the two")
        lines.setdefault(name, table.line_num)
    return made


def decide(folder: Path, transcribed: Collection[str], name: str, decision: Decision | None) -> None:
    """Write a person's decision about a dialog into `decisions.csv`, in place of an earlier one; None takes it back."""
    made = {other: kept for other, kept in decisions(folder, transcribed).items() if other != name}
    if decision is not None:
        made[name] = decision
    rows = [[other, kept.decision, kept.reason, kept.who, kept.when] for other, kept in made.items()]
    storage.write_text(folder / "decisions.csv", storage.csv_text(COLUMNS, rows))


def corrected_file(folder: Path, name: str) -> Path:
    """Where a person's corrected dialog lies: `<name>.txt`, in which `/` in the name is `_`."""
    return folder / f"{name.replace('/', '_')}.txt"


def labeled_turns(text: str, path: Path, speech: Language) -> list[Turn]:
    """A corrected dialog's volleys, one per line after its label. Raises Problem, which names the file and line."""
    turns: list[Turn] = []
    for number, line in enumerate(text.splitlines(), 1):
        label = LABEL.match(line.strip())
        text = line.strip()[label.end() :] if label else ""
        if label and text and not LABEL.search(text):
            turns.append(Turn(role=ROLES[label["name"].lower()], text=text))
        elif line.strip():
            raise Problem(
                f"{path}, line {number}",
                repr(line[:40]),
                " or ".join(f"{label}{speech.colon}…" for label in speech.labeled.values()),
                "put each volley on one line behind its label",
            )
    if len({turn.role for turn in turns}) < 2:
        raise Problem(str(path), "only one side speaks, or none", "the corrected dialog", "write it, or decide drop")
    return turns


def examined(study: Study, entry: dict[str, Any]) -> Examined:
    """Check one line of `transcribed.jsonl`."""
    published = entry["key"] is None and entry["source"] == "release"
    as_it_is = entry["key"] is None and not published
    changed: list[str] = []
    try:
        turns = turns_of(entry["answer"])
        if as_it_is and turns[0].role == "counselor" and len(turns) > 1:
            changed.append("the counselor's first volley, before the client speaks, left out")
            turns = turns[1:]
        faults = list(reasons(turns, study.screen, language.load(study.language)))
    except ValueError as error:
        turns, faults = [], [Reason("form", str(error))]
    one_sided = len({turn.role for turn in turns}) < 2
    drops = one_sided if as_it_is else any(reason.kind not in REMARKS for reason in faults)
    seen = "; ".join(reason.seen for reason in faults)
    proposal = Decision("drop" if drops else "keep", seen, AUTOMATIC, "")
    if published and not one_sided:  # the authors kept it
        proposal = Decision("keep", seen, AUTHORS, "")
    return Examined(f"{entry['source']}/{entry['dialog']}", entry, tuple(turns), tuple(faults), proposal, tuple(changed))


def screen(study: Study) -> None:
    """Screen the transcribed dialogs; see the module. Raises Problem, after writing the proposals, while a person must decide."""
    folder, transcribed = Path(study.screen.decisions), study.path("transcribe", "transcribed.jsonl")
    with stage(study, "screen", None, [transcribed, folder]) as out:
        dialogs = [examined(study, entry) for entry in storage.read_lines(transcribed)]
        person = decisions(folder, {dialog.name for dialog in dialogs})
        kept, rows = [], []
        pages: list[dict[str, Any]] = []
        for dialog in dialogs:
            name, entry, turns, changed = dialog.name, dialog.entry, list(dialog.turns), list(dialog.changed)
            decided = person.get(name, dialog.proposal)
            if decided.decision == "keep" and dialog.one_sided:
                fault = f"{name} is kept, but one side alone speaks in it"
                raise Problem(str(folder / "decisions.csv"), fault, "fix or drop", "correct the decision")
            if decided.decision == "fix":
                path = corrected_file(folder, name)
                turns = labeled_turns(storage.read_text(path), path, language.load(study.language))
            if turns and turns[-1].role == "client":
                changed.append("last client volley without a reply left out")
                turns = turns[:-1]
            if decided.decision != "drop" and turns:
                meta = {"transcribed_from": entry["dialog"]} | ({"fixed_by": decided.who} if decided.decision == "fix" else {})
                if entry.get("records"):
                    meta["records"] = entry["records"]
                kept.append(Dialog(id=name, source=entry["source"], turns=tuple(turns), meta=meta))
            rows.append(
                {
                    "dialog": name,
                    "decision": decided.decision,
                    "kinds": "; ".join(dialog.kinds),
                    "proposal": dialog.proposal.decision,
                    "seen": dialog.proposal.reason,
                    "reason": decided.reason if decided is not dialog.proposal else "",
                    "who": decided.who,
                    "changed": "; ".join(changed),
                }
            )
            pages.append({"row": rows[-1], "turns": turns})
        waiting = [row for row in rows if study.screen.policy == "person" and row["who"] == AUTOMATIC]
        write(out, rows, waiting, pages, study)
        if waiting:
            raise Problem(
                str(folder / "decisions.csv"),
                f"this step waits for a person: {len(waiting)} of {len(rows)} dialogs have no decision",
                "a person's decision on every dialog",
                f"decide on the page that `mi-llm screen --open --study {study.params}` opens, or complete {out}/proposals.csv"
                " (decision, reason, who, when) and add its rows there; then run again; or set screen.policy to automatic",
            )
        write_dialogs(out / "dialogs.jsonl", kept)
        if remarked := [row["dialog"] for row in rows if row["kinds"] and row["decision"] == "keep" and row["who"] == AUTOMATIC]:
            print(f"screen: {len(remarked)} dialogs are kept with remarks; a person should read them: {out}/dialogs.html")
        counts = Counter(row["decision"] for row in rows)
        numbers = {"screened": len(rows), "kept": counts["keep"], "dropped": counts["drop"], "fixed": counts["fix"]}
        storage.write_json(out / "metrics.json", numbers)


def write(
    out: Path, rows: list[dict[str, str]], waiting: list[dict[str, str]], pages: list[dict[str, Any]], study: Study
) -> None:
    """Write what a person reads: the table, the proposals still to be decided, and the page, flagged dialogs first."""
    storage.write_table(out / "screening.csv", pd.DataFrame(rows, columns=ROWS))
    proposed = [
        {"dialog": row["dialog"], "decision": row["proposal"], "reason": row["seen"], "who": "", "when": ""} for row in waiting
    ]
    storage.write_table(out / "proposals.csv", pd.DataFrame(proposed, columns=COLUMNS))
    ordered = sorted(pages, key=lambda page: not page["row"]["kinds"])
    templates, package, speech = environment(__package__), resources.files(__package__), language.load(study.language)
    for lang, suffix in SUFFIXES.items():
        page = templates.get_template("dialogs.html.jinja").render(
            lang=lang,
            here="screen/dialogs",
            address=address,
            linked=lambda there: study.reproduction or there != AUDIT,
            study=study,
            dialogs=ordered,
            title=study.report.title_zh if lang == "zh" else study.title,
            notice=study.report.notice_zh if lang == "zh" else study.report.notice,
            counts=Counter(row["decision"] for row in rows),
            by_person=sum(row["who"] != AUTOMATIC for row in rows),
            remarked=any(row["kinds"] for row in rows),
            segments=partial(segments, speech=speech),
            speech=speech,
            style=style(),
            script=inline(package / "dialogs.js"),
        )
        storage.write_text(out / f"dialogs{suffix}.html", page)
