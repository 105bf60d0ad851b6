"""Text with speakers' labels: `来访者：…`, `Therapist: …`, `T1: …`, `[Client] …`, `Speaker 1 00:12` above what is said.

Which labels are speakers is decided over all files: names that are known, names that parameters map, and names that open
lines again and again. A file may hold several dialogs, below headings or between lines of dashes. Lines before a dialog's
first label are its header.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from mi_llm.corpora.own.draft import Draft, Volley, id_of
from mi_llm.corpora.own.speakers import known_role, unnumbered
from mi_llm.corpora.reading import Repairs
from mi_llm.language.language import CHINESE

TIME = r"\d{1,2}[:：]\d{2}(?:[:：]\d{2})?(?:[.,]\d{1,3})?"
DAY = r"(?:\d{4}[-/.年]\d{1,2}[-/.月]\d{1,2}日?\s*)?"
SPAN = rf"{DAY}{TIME}(?:\s*(?:-->|[-–—~～至到])\s*{TIME})?"
IN_BRACKETS = re.compile(rf"\s*[\[（(【<]\s*{SPAN}\s*[\]）)】>]\s*")  # anywhere in a line
STAMP = re.compile(rf"(?:{IN_BRACKETS.pattern}|\s*{SPAN}\s+)+")  # at the start of a line, before a label
NAME = r"[^\W\d_](?:[\w·.' -]{0,22}[\w.])?"
QUALIFIER = r"(?:\s*[（(][^（()）]{0,20}[）)])?"
MARKS = r"[*_#>\s]*"  # Markdown
NUMBERED = re.compile(r"\s*(?:\d{1,4}[.、)）]\s*|[-*•–—]\s+)")
COLON = re.compile(
    rf"{MARKS}[【\[]?(?P<label>{NAME}){QUALIFIER}[】\]]?{MARKS}(?:{IN_BRACKETS.pattern})?{MARKS}(?P<colon>[：:])(?!//){MARKS}"
)
BRACKETED = re.compile(rf"{MARKS}[【\[](?P<label>{NAME}){QUALIFIER}[】\]]{MARKS}(?P<colon>)")
TABBED = re.compile(rf"(?P<label>{NAME})(?P<colon>)\t+")
ABOVE = re.compile(rf"(?P<label>{NAME}){QUALIFIER}(?P<colon>)\s*(?:{IN_BRACKETS.pattern}|{SPAN})\s*$")
ALONE = re.compile(rf"(?P<label>{NAME})(?P<colon>)\s*$")
RULE = re.compile(r"\s*[-=*_#~—]{3,}\s*")
NUMBER = r"(?:\d+|[一二三四五六七八九十百]+)"
HEADING = re.compile(
    rf"[\s#*【\[]*(?:第\s*{NUMBER}\s*(?:次|段|篇|个|场)?\s*(?:对话|会谈|访谈|案例|个案|咨询)"
    rf"|(?:对话|会谈|访谈|案例|个案|dialog(?:ue)?|session|case|conversation|transcript)\s*[#：:]?\s*{NUMBER})\b.{{0,40}}",
    re.IGNORECASE,
)
FACTS = re.compile(  # what the head of a transcript says about it
    r"\W*(?:日期|时间|地点|编号|案例|个案|主题|标题|题目|性别|年龄|姓名|来访者姓名|咨询师姓名|职业|次数|时长|备注|来源|录音|转录"
    r"|记录人|date|time|topic|title|id|file|session|duration|location|transcriber|recorded)\w{0,6}\W{0,2}[：:]",
    re.IGNORECASE,
)
HEAD = 12  # lines at the top among which a header's last fact may stand
SPEECH = re.compile(  # words before a colon that are no speaker
    r".*(?:说|道|问|答|讲|想|是|有|如下|觉得|认为|建议|表示|告诉|比如|例如|譬如|首先|其次|然后|最后|另外|还有|第[一二三四五六七八九十]|注意|结论|原因)"
    r"|.*\b(?:says?|said|is|are|was|example|note|first|second|third|finally|also|like|this|that|following|thing|question)",
    re.IGNORECASE,
)
LONGEST_NAME = 8  # characters behind a label in a header: `咨询师：王芳`
RECURS = 3  # so often a name opens a line that nobody knows and that is a speaker


@dataclass(frozen=True)
class Page:
    """The lines of one text, each with its place."""

    file: str
    lines: list[tuple[str, str]]


@dataclass(frozen=True)
class Labeled:
    """A line that opens with a label: who, what follows, and the marks that were in the way."""

    label: str
    text: str
    colon: str
    stamped: bool


def page(text: str, file: str) -> Page:
    """A text as a page of numbered lines."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return Page(file, [(f"{file}, line {number}", line) for number, line in enumerate(lines, 1)])


def labeled(line: str) -> Iterator[Labeled]:
    """The ways to read the start of a line as a label."""
    stamp = STAMP.match(line)
    rest = line[stamp.end() :] if stamp else line
    numbered = NUMBERED.match(rest)
    for start in dict.fromkeys((rest, rest[numbered.end() :] if numbered else rest)):
        for pattern in (ABOVE, COLON, BRACKETED, TABBED, ALONE):
            if match := pattern.match(start.strip(" ")):
                label = re.sub(r"\s+", " ", match["label"]).strip()
                after = start.strip(" ")[match.end() :]
                if label[-1:].isdigit() and match["colon"] == ":" and after[:1].isdigit():  # a time: 晚上10:30
                    continue
                stamped = bool(stamp) or pattern is ABOVE or bool(IN_BRACKETS.search(match[0]))
                yield Labeled(label, after, match["colon"], stamped)


def candidates(of: Page) -> Counter[str]:
    """How often each name opens a line as a label; a name alone or in brackets only if it is known."""
    counts: Counter[str] = Counter()
    for _, line in of.lines:
        if not FACTS.match(line):
            for label_match in labeled(line):
                label, marked = label_match.label, label_match.colon or label_match.stamped
                if known_role(label) or (marked and not SPEECH.fullmatch(label)):
                    counts[label] += 1
                    break
    return counts


def speakers(pages: Iterable[Page], mapped: Collection[str]) -> set[str]:
    """The labels that are speakers: known names, mapped ones, and those that open lines again and again.

    In a text that does not name both client and counselor, twice suffices, and once for letters that stand together.
    """
    counts: Counter[str] = Counter()
    speaker_labels: set[str] = set()
    for page in pages:
        page_counts = candidates(page)
        counts.update(page_counts)
        if len({known_role(label) for label in page_counts} - {None}) < 2:
            letters = {label for label in page_counts if re.fullmatch(r"[A-Za-z]\d*", label)}
            speaker_labels |= {label for label, count in page_counts.items() if count > 1}
            speaker_labels |= letters if len(page_counts) == len(letters) > 1 else set()
    speaker_labels |= {label for label in counts if known_role(label) or label in mapped or counts[label] >= RECURS}
    base = {label: unnumbered(label) for label in counts}
    turns = Counter(base.values())  # T1, C1, T2, …: numbers of turns, not of persons
    return speaker_labels | {label for label in counts if base[label] != label and turns[base[label]] >= RECURS} | set(mapped)


def unknown(pages: Iterable[Page], accepted: Collection[str]) -> dict[str, str]:
    """Names that open a line like a label and are no accepted speaker, each with its first place; a header's are left out."""
    first_places: dict[str, str] = {}
    for page in pages:
        inside = False
        for where, line in page.lines[header_end(page) :]:
            match = chosen(line, accepted)
            inside = inside or match is not None
            if inside and match is None and not FACTS.match(line) and not HEADING.fullmatch(line):
                for other in labeled(line):
                    if other.colon and len(other.label) <= (8 if CHINESE.search(other.label) else 20):
                        if not SPEECH.fullmatch(other.label) and len(other.label.split()) <= 3:
                            first_places.setdefault(other.label, where)
                        break
    return first_places


def chosen(line: str, accepted: Collection[str]) -> Labeled | None:
    """The label with which a line opens, if it is an accepted speaker's."""
    return next((label_match for label_match in labeled(line) if label_match.label in accepted), None)


def header_end(of: Page) -> int:
    """How many lines belong to the header: those up to the last fact among the first, before anybody says a sentence."""
    end = 0
    for number, (_, line) in enumerate(of.lines[:HEAD]):
        if FACTS.match(line):
            end = number + 1
        elif any(known_role(label_match.label) and len(label_match.text) > LONGEST_NAME for label_match in labeled(line.strip())):
            break
    return end


def drafts(of: Page, accepted: Collection[str], repairs: Repairs) -> list[Draft]:
    """The dialogs of a page. A line without a label continues the volley before it."""
    made: list[list[Volley]] = [[]]
    header = header_end(of)
    for number, (where, line) in enumerate(of.lines):
        stripped = line.strip().strip("\u200b\ufeff")
        if not stripped:
            continue
        if RULE.fullmatch(stripped) or (HEADING.fullmatch(stripped) and not chosen(stripped, accepted)):
            if made[-1]:
                made.append([])
            repairs.note("line between dialogs left out", where)
            header = max(header, number + 1 + header_end(Page(of.file, of.lines[number + 1 :])))
            continue
        match = chosen(stripped, accepted) if number >= header else None
        if match is not None:
            if match.colon == ":":
                repairs.note("half-width colon after a label", where)
            if match.stamped:
                repairs.note("timestamp left out", where)
            made[-1].append(Volley(match.label, match.text, where))
        elif not made[-1]:
            repairs.note("header line left out", where)
        else:
            last = made[-1][-1]
            if last.text:
                repairs.note("continuation line joined", where)
            made[-1][-1] = Volley(last.label, f"{last.text}\n{stripped}" if last.text else stripped, last.where)
    whole = [volleys for volleys in made if volleys]
    stem = id_of(of.file)
    return [
        Draft(stem if len(whole) == 1 else f"{stem}-{number}", of.file, "text with labels", volleys, False, {"file": of.file})
        for number, volleys in enumerate(whole, 1)
    ]


def lines_of(texts: Sequence[tuple[str, str]], file: str) -> Page:
    """A page of paragraphs or cues, each with its place; one may hold several lines."""
    return Page(file, [(where, line) for where, text in texts for line in text.splitlines()])
