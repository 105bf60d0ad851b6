"""Reading your own dialogs: files in, dialogs out, and what was understood of them.

Every file is parsed by what is in it. Then, over all files: labels become client and counselor (`speakers.py`), what is no
speech is left out, samples of one dialog are joined, and `assemble` makes dialogs as every reader does. Each repair is counted
with its first place; what cannot be repaired is refused by place.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from mi_llm.corpora.files import File, checked_name, from_folder
from mi_llm.corpora.own import labeled, records, subtitles, tables, word
from mi_llm.corpora.own.draft import SYSTEM, TOOL, Draft, Volley
from mi_llm.corpora.own.encoding import decoded
from mi_llm.corpora.own.labeled import Page
from mi_llm.corpora.own.speakers import Part, Speaker, decided
from mi_llm.corpora.reading import Repairs, assemble, unique
from mi_llm.dialog import Dialog
from mi_llm.problem import Problem
from mi_llm.study import Corpus

HIDDEN = re.compile(r"(?:^|/)(?:\.|~\$|__MACOSX/|Thumbs\.db$|desktop\.ini$)")
MEDIA = re.compile(r".*\.(?:mp3|m4a|wav|aac|flac|ogg|wma|amr|mp4|mov|avi|mkv|webm|jpe?g|png|gif|heic|bmp)", re.IGNORECASE)
OTHER = {  # what is not read, and what to save it as
    ".pdf": "text or Word (.docx)",
    **dict.fromkeys((".doc", ".rtf", ".odt", ".pages"), "Word (.docx)"),
    **dict.fromkeys((".xls", ".ods", ".numbers"), "Excel (.xlsx)"),
    **dict.fromkeys((".zip", ".gz", ".7z", ".rar"), "a folder of its files"),
}
OF_PACKETS = "raters.json"  # lies in a folder of packets, and is none
DIRECTION = re.compile(
    r"笑|哭|沉默|停顿|叹气|叹息|点头|摇头|咳|听不清|听不见|不清楚|抽泣|流泪|拭泪|音频|录音|杂音|铃声|起身"
    r"|\b(?:laugh|cry|cries|sob|sigh|paus|silen|inaudible|unclear|crosstalk|nod|cough|sniff|smil|tear|overlap|music|noise)",
    re.IGNORECASE,
)
BRACKETS = re.compile(
    r"\s*(?:（[^（）]{1,30}）|\([^()]{1,30}\)|【[^【】]{1,30}】|\[[^\[\]]{1,30}\]|〔[^〔〕]{1,30}〕|\*[^*\n]{1,30}\*)"
)


@dataclass
class Understood:
    """What was understood of some files: shapes of dialogs, encodings of files, the speakers, the dialogs, the repairs."""

    dialogs: list[Dialog] = field(default_factory=list)
    shapes: Counter[str] = field(default_factory=Counter)
    encodings: Counter[str] = field(default_factory=Counter)
    speakers: list[Speaker] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)
    repairs: Repairs = field(default_factory=Repairs)


def files_of(corpus: Corpus) -> Iterator[File]:
    """The files of a corpus, in natural order; those of several paths below the name of theirs."""
    for path in corpus.paths:
        above = f"{path.name}/" if len(corpus.paths) > 1 and path.is_dir() else ""
        if not path.exists():
            raise Problem(str(path), "no such file or folder", "your own dialogs", "correct the path, or bring the files")
        if path.is_file():
            yield File(checked_name(path.name, str(path)), path.read_bytes())
        else:
            yield from (File(above + file.name, file.content) for file in from_folder(path) if not HIDDEN.search(file.name))


def read_transcripts(
    path: Path, speakers: Mapping[str, Part] | None = None, columns: Mapping[str, str] | None = None
) -> tuple[list[Dialog], Repairs]:
    """The dialogs of a file or folder in any of the formats, without a study, and every repair that was made; nothing is written.

    `speakers` says whom a label means, `columns` how a table's columns are called, as a study's corpus has them. Timestamps are
    left out of what is said. A dialog's id is its own, or its file's name without the ending; an id that comes again gets a
    number. Raises Problem with the file and line that cannot be read, for a speaker whom nobody knows, and for a path without
    any dialog.
    """
    corpus = Corpus.model_validate(
        {"path": str(path), "speakers": speakers or {}, "columns": columns or {}, "drop": ("timestamps",)}
    )
    files = (file for file in files_of(corpus) if PurePosixPath(file.name).name != OF_PACKETS)
    understood = understand(files, "transcripts", corpus, Repairs(), apart=True)
    if not understood.dialogs:
        raise Problem(str(path), "no transcript", "text, JSON, a table, subtitles, or Word", "name the folder with them")
    return understood.dialogs, understood.repairs


def understand(
    files: Iterable[File], name: str, corpus: Corpus, repairs: Repairs, *, lenient: bool = False, apart: bool = False
) -> Understood:
    """Read files as one corpus. Raises Problem for what is no dialog and, unless `lenient`, for a speaker who is unknown.

    `apart`: dialogs of different files or ids are different, even where they say the same.
    """
    parsed = Parsed(corpus, repairs)
    for file in files:
        parsed.add(file)
    drafts = parsed.drafts()
    understood = Understood(repairs=repairs, encodings=parsed.encodings, shapes=Counter(draft.shape for draft in drafts))
    people = decided((volley for draft in drafts for volley in draft.volleys), corpus.speakers)
    understood.speakers = list(people.values())
    understood.unknown = parsed.unknown() | {
        speaker.label: speaker.first for speaker in people.values() if speaker.part == "unknown"
    }
    if understood.unknown and not lenient:
        raise unexplained(understood)
    cleaned = [cut(draft, people, corpus, repairs) for draft in drafts]
    joined = join([draft for draft in cleaned if draft.volleys], repairs, apart=apart)
    made = (dialog for draft in joined for dialog in dialogs_of(draft, name, repairs))
    understood.dialogs = list(unique(made, repairs))
    return understood


def unexplained(understood: Understood) -> Problem:
    """The error for labels of which nobody knows whom they mean."""
    label, where = next(iter(understood.unknown.items()))
    _, *further = understood.unknown
    others = f", and {len(further)} more: {', '.join(further[:8])}" if further else ""
    evidence = "; ".join(f"{speaker.label}: {speaker.evidence}" for speaker in understood.speakers if speaker.part == "unknown")
    return Problem(
        where,
        f"the unknown speaker {label!r}{others}" + (f" ({evidence})" if evidence else ""),
        "a speaker who is known as client or counselor",
        f"say who it is, in `speakers` or with --speaker {label}=client (or =counselor; =drop leaves those volleys out; =speech"
        " says that it is no speaker)",
    )


class Parsed:
    """The files as drafts, as far as each file can say by itself; text with labels waits until all files are known."""

    def __init__(self, corpus: Corpus, repairs: Repairs) -> None:
        self.corpus, self.repairs = corpus, repairs
        self.encodings: Counter[str] = Counter()
        self.parts: list[list[Draft] | tuple[Page, str]] = []

    def add(self, file: File) -> None:
        """Parse one file; raises Problem for one that is none of the formats."""
        suffix = PurePosixPath(file.name).suffix.lower()
        if HIDDEN.search(file.name) or MEDIA.fullmatch(file.name):
            self.repairs.note("file left out: a recording, a picture, or hidden", file.name)
            return
        if suffix in OTHER:
            expected = "JSON, a table (CSV, Excel), text, subtitles, or Word"
            raise Problem(file.name, f"a {suffix} file", expected, f"save it as {OTHER[suffix]}, or move it to another folder")
        kind = self.corpus.format
        if kind == "word" or (kind == "auto" and suffix == ".docx"):
            self.add_word(file)
        elif suffix in (".xlsx", ".xlsm") and kind in ("auto", "table"):
            self.add_sheets(file)
        else:
            self.add_text(file, suffix, kind)

    def add_text(self, file: File, suffix: str, kind: str) -> None:
        """Parse a file of text: JSON, a table, subtitles, or lines with labels."""
        text, encoding, marked = decoded(file.content, file.name)
        self.encodings[encoding] += 1
        if marked:
            self.repairs.note("byte order mark removed", file.name)
        if encoding != "UTF-8":
            self.repairs.note(f"decoded from {encoding}", file.name)
        if "\r" in text:
            self.repairs.note("carriage return removed", file.name)
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if not text.strip():
            self.repairs.note("empty file left out", file.name)
            return
        documents = records.documents(text, file.name) if kind in ("auto", "json") else None
        if documents is not None:
            self.parts.append(records.drafts(documents, file.name, self.columns, self.repairs))
        elif kind == "json":
            raise Problem(file.name, "no JSON", "JSON or JSON Lines, as `format: json` says", "correct `format`, or the file")
        elif kind == "table" or (kind == "auto" and suffix in (".csv", ".tsv", ".tab")):
            rows = tables.read_text(text, file.name)
            self.parts.append(
                tables.drafts(rows, tables.Source(file.name, f"{suffix[1:].upper() or 'text'} table"), self.columns, self.repairs)
            )
        elif kind == "subtitles" or (kind == "auto" and (suffix in (".srt", ".vtt") or text.startswith("WEBVTT"))):
            self.parts.append((subtitles.page(text, file.name), "subtitles"))
        else:
            self.parts.append((labeled.page(text, file.name), "text with labels"))

    def add_sheets(self, file: File) -> None:
        """Parse a workbook; sheets without a table of volleys are left out, unless all are."""
        sheets = {title: rows for title, rows in tables.read_excel(file).items() if any(any(cells) for _, cells in rows)}
        problem: Problem | None = None
        made: list[Draft] = []
        for title, rows in sheets.items():
            try:
                sheet = title if len(sheets) > 1 else ""
                made += tables.drafts(rows, tables.Source(file.name, "Excel table", sheet), self.columns, self.repairs)
            except Problem as error:
                problem = problem or error
                self.repairs.note("sheet without volleys left out", f"{file.name}, sheet {title}")
        if not made:
            raise problem or Problem(file.name, "empty", "a table of volleys", "fill it, or move it to another folder")
        self.parts.append(made)

    def add_word(self, file: File) -> None:
        """Parse a Word file: its tables, else its paragraphs."""
        page, word_tables = word.parts(file)
        made: list[Draft] = []
        for rows in word_tables:
            try:
                made += tables.drafts(rows, tables.Source(file.name, "Word table"), self.columns, self.repairs)
            except Problem:
                page.lines.extend((where, "\t".join(cells)) for where, cells in rows)
        self.parts.append(made or (page, "Word"))

    @property
    def columns(self) -> dict[str, str]:
        """The columns that the parameters name."""
        return {str(kind): heading for kind, heading in self.corpus.columns.items()}

    @property
    def pages(self) -> list[Page]:
        """The texts with labels."""
        return [part[0] for part in self.parts if isinstance(part, tuple)]

    @property
    def accepted(self) -> set[str]:
        """The labels that are speakers in texts."""
        given = self.corpus.speakers
        return labeled.speakers(self.pages, given) - {label for label, part in given.items() if part == "speech"}

    def unknown(self) -> dict[str, str]:
        """Names that look like speakers in texts, and are none that is known."""
        unknown_labels = labeled.unknown(self.pages, self.accepted)
        return {label: where for label, where in unknown_labels.items() if label not in self.corpus.speakers}

    def drafts(self) -> list[Draft]:
        """The dialogs of all files, in their order; raises Problem for a text in which nobody is named."""
        accepted, made = self.accepted, list[Draft]()
        for part in self.parts:
            if isinstance(part, list):
                made += part
                continue
            page, shape = part
            of_page = labeled.drafts(page, accepted, self.repairs)
            if not of_page:
                first = next((line.strip() for _, line in page.lines if line.strip()), "")
                raise Problem(
                    page.file,
                    f"no line that names a speaker; it begins “{first[:40]}”",
                    "lines as 来访者：… and 咨询师：…, or Client: … and Counselor: …",
                    "label who speaks, name the labels with --speaker LABEL=client, or move the file to another folder",
                )
            for draft in of_page:
                draft.shape = shape
            made += of_page
        return made


def cut(draft: Draft, people: dict[str, Speaker], corpus: Corpus, repairs: Repairs) -> Draft:
    """A draft whose labels are roles, without what is no speech."""
    said = []
    for volley in draft.volleys:
        part = people[volley.label].part
        if part in (SYSTEM, TOOL):
            repairs.note(f"{part} turn left out", volley.where)
        elif part == "drop":
            repairs.note(f"volley of {volley.label} left out", volley.where)
        elif part in ("client", "counselor"):
            said.append(Volley(part, spoken(volley, corpus, repairs), volley.where))
    return Draft(draft.id, draft.file, draft.shape, said, draft.named, draft.meta)


def spoken(volley: Volley, corpus: Corpus, repairs: Repairs) -> Any:
    """What is said in a volley, without what the parameters leave out."""
    text = volley.text
    if not isinstance(text, str):
        return text

    def note(kind: str, removed_text: str) -> None:
        repairs.note(kind, f"{volley.where}: {removed_text}")

    if "timestamps" in corpus.drop:
        text = without(labeled.IN_BRACKETS, text, partial(note, "timestamp left out"))
    if "stage-directions" in corpus.drop:
        text = without(BRACKETS, text, partial(note, "stage direction left out"), DIRECTION)
    return text


def without(pattern: re.Pattern[str], text: str, note: Callable[[str], None], holding: re.Pattern[str] | None = None) -> str:
    """A text without what fits a pattern, and holds another if one is given; `note` is told each."""

    def removed(match: re.Match[str]) -> str:
        if holding and not holding.search(match[0]):
            return match[0]
        note(match[0].strip())
        return " " if match[0][:1].isspace() and text[match.end() : match.end() + 1].isascii() else ""

    return pattern.sub(removed, text)


def join(drafts: Sequence[Draft], repairs: Repairs, *, apart: bool) -> list[Draft]:
    """The drafts, where one that begins another is left out: it is an earlier sample of the same dialog, or a copy.

    Samples of one round each that have one id are put together in their order. `apart`: only within one file, and one id.
    """
    rounds: dict[tuple[str, str], Draft] = {}
    merged = []
    for draft in drafts:
        key = (draft.file, draft.id)
        one_round = draft.named and len(draft.volleys) <= 2
        if one_round and key in rounds:
            repairs.note("samples of one dialog joined", draft.volleys[0].where)
            rounds[key].volleys.extend(draft.volleys)
        else:
            merged.append(replace(draft, volleys=list(draft.volleys)))
            if one_round:
                rounds[key] = merged[-1]
    texts = [
        (
            *([(draft.file, draft.id if draft.named else "")] if apart else []),
            *((volley.label, str(volley.text).strip()) for volley in draft.volleys),
        )
        for draft in merged
    ]
    order = sorted(range(len(merged)), key=lambda index: (texts[index], index))
    first: dict[int, int] = {}  # of the longest sample: where its dialog began
    gone: set[int] = set()
    for before, after in pairwise(order):
        if texts[after][: len(texts[before])] == texts[before]:
            copy = texts[after] == texts[before]
            kind = "dialog given again left out" if copy else "samples of one dialog joined"
            repairs.note(kind, merged[before].volleys[0].where)
            gone.add(before)
            first[after] = min(first.get(before, before), after)
    kept = sorted((index for index in range(len(merged)) if index not in gone), key=lambda index: first.get(index, index))
    return [merged[index] for index in kept]


def dialogs_of(draft: Draft, name: str, repairs: Repairs) -> Iterator[Dialog]:
    """The dialog of a draft, as `assemble` makes it; one without any text is left out."""
    if all(isinstance(volley.text, str) and not volley.text.strip() for volley in draft.volleys):
        repairs.note("dialog without text left out", draft.volleys[0].where)
        return
    volleys = [(volley.label, volley.text, volley.where) for volley in draft.volleys]
    for dialog in assemble(draft.id, name, volleys, repairs, draft.meta):
        if dialog.turns[0].role == "counselor" and not dialog.one_sided:
            repairs.note("the counselor speaks first", draft.volleys[0].where)
        yield dialog


def reader(name: str, corpus: Corpus) -> Callable[[Iterable[File], Repairs], Iterator[Dialog]]:
    """The reader of your own dialogs, as `read` calls every corpus's."""

    def read(files: Iterable[File], repairs: Repairs) -> Iterator[Dialog]:
        yield from understand(files, name, corpus, repairs).dialogs

    return read
