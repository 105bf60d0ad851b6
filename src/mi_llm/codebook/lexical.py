"""The lexical coder: MITI behaviors told from words alone, in each language of `language/` (paper, Methods, Manual Evaluation).

It is small, deterministic and fast. It codes what people do not (the miniature, thousands of replies) and is the baseline that a
better coder has to beat. It reads `language/<language>/cues.yaml`, or the file that a study names in its place (`code.cues`),
writes nothing, and sees of the dialog only the client's volley before the counselor's. Stage `miti` measures how far it agrees
with experts.

A volley is cut into sentences, a sentence into clauses. Each clause gets the first behavior of `ORDER` of which it holds a cue;
a clause without any joins the one before, so that an utterance is as long as its thought. A sentence without any cue is a
reflection if it repeats the client or speaks of the client only, else it informs if it is long. A reflection is complex if it is
not mostly the client's own words and holds a cue of feeling, meaning, image or two sides.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from mi_llm import storage
from mi_llm.codebook.coding import Behavior, Coded, volley
from mi_llm.dialog import Dialog
from mi_llm.language import language
from mi_llm.language.language import DEFAULT, Language
from mi_llm.problem import Problem

ORDER = (  # precedence: where the manual lets one code go before another (confront, affirm), so do we; else the rarer goes first
    ("confront", Behavior.CONFRONT),
    ("suggestion", Behavior.PERSUADE),
    ("persuade", Behavior.PERSUADE),
    ("emphasize_autonomy", Behavior.EMPHASIZE),
    ("seek_collaboration", Behavior.SEEK),
    ("affirm", Behavior.AFFIRM),
    ("question", Behavior.QUESTION),
    ("reflection", Behavior.SIMPLE),
    ("information", Behavior.INFORMATION),
)
ECHO = 0.3  # an utterance repeats the client if at least this share of its content is in the client's volley
OWN = 0.5  # from this share on, a reflection is mostly the client's own words, hence simple
LONG = 5  # a statement of at least this many content words (without spaces, twice as many pairs of characters) informs

SENTENCE = re.compile(
    r"""(?:(?:Mrs?|Ms|Dr|\d)\.|\.(?=\S)|[^。！？!?；;.\n])+[。！？!?；;.\n]*[”’」』）")\s]*|[。！？!?；;.\n]+[”’」』）")\s]*"""
)
CLAUSE = re.compile(r"(?:[^，,：—-]|-(?![-\s]))+[，,：—\s-]*|[，,：—-]+")
EDGES = " \t\r\n.,-–—，、。！？!?：…\"'“”‘’*#0123456789)）"
CLOSERS = ' \n”’」』）")*'
STUTTER = re.compile(r"\b([\w']+)-+\s?(?=\1)")  # transcripts of speech
ITEM = re.compile(r"\s*(?:\d+[.、)）]|[-*•]\s)")


@dataclass(frozen=True)
class Cues:
    """The cues of one language: a pattern for each group; `idle` words carry no content, `tags` are endings that only check."""

    language: Language
    cues: Mapping[str, re.Pattern[str]]
    idle: tuple[str, ...]
    tags: frozenset[str]

    @cached_property
    def unit(self) -> re.Pattern[str]:
        """A word in small letters, or without spaces a run of letters."""
        letters = self.language.letters
        return re.compile(rf"[{letters}0-9]+(?:['-][{letters}0-9]+)*" if self.language.spaced else f"[{letters}]{{2,}}")

    def written(self, text: str) -> bool:
        """Whether more than a third of a text's characters are letters of the language."""
        return 3 * len(self.language.letter.findall(text)) > len(text)

    def words(self, text: str) -> list[str]:
        """The words of a text of a language with spaces, in small letters."""
        return self.unit.findall(text.lower().replace("’", "'"))

    def has(self, group: str, clause: str) -> bool:
        """Whether a bare clause holds a cue of the group."""
        return self.cues[group].search(clause) is not None

    def bare(self, clause: str) -> str:
        """A clause in lower case, without the marks around it and without openers."""
        clause = STUTTER.sub("", clause.lower().replace("’", "'")).strip(EDGES)
        while opener := self.cues["openers"].match(clause):
            clause = clause[opener.end() :].lstrip(EDGES)
        return clause

    def content(self, text: str) -> set[str]:
        """The content of a text: its words, or without spaces its pairs of neighboring characters, without idle words."""
        if self.language.spaced:
            return set(self.words(text)) - set(self.idle)
        for word in self.idle:
            text = text.replace(word, " ")
        return {run[start : start + 2] for run in self.unit.findall(text) for start in range(len(run) - 1)}


def words(cues: str) -> list[str]:
    """The cues of a group, longest first, so that a longer cue matches before a shorter one that it begins with."""
    return sorted((cue.strip() for cue in cues.split(",")), key=len, reverse=True)


def pattern(cues: Iterable[str], spaced: bool) -> re.Pattern[str]:
    """One expression for a group of cues, in the notation of the cue files."""
    gap, begin, end = (r" (?:[\w',-]+ ){0,4}", r"(?<![\w'])", r"(?![\w'])") if spaced else (".{0,12}?", "", "")
    opening: list[str] = []
    anywhere: list[str] = []
    for cue in cues:
        parts = [re.escape(part.strip()) for part in cue.removeprefix("^").removesuffix("$").split("...")]
        written = gap.join(parts) + "$" * cue.endswith("$")
        (opening if cue.startswith("^") else anywhere).append(written)
    alternatives = [
        f"{prefix}(?:{'|'.join(expressions)}){end}" for prefix, expressions in (("^", opening), (begin, anywhere)) if expressions
    ]
    return re.compile("|".join(alternatives))


@cache
def cues_of(code: str, file: str = "") -> Cues:
    """The cues of a language, the bundle's or those of a study's file; raises Problem for a file that lacks a group."""
    known = language.load(code)
    bundled = known.read("cues.yaml")
    groups = storage.read_yaml(Path(file)) if file else bundled
    for group in bundled:
        entry = groups.get(group) if isinstance(groups, dict) else None
        if not (isinstance(entry, dict) and isinstance(entry.get("cues"), str)):
            raise Problem(file, f"no group {group} with `cues`", ", ".join(bundled), f"see {known.file('cues.yaml')}")
    cues = {group: words(groups[group]["cues"]) for group in bundled}
    idle, tags = tuple(cues.pop("idle")), frozenset(cues.pop("tags"))
    return Cues(known, {group: pattern(listed, known.spaced) for group, listed in cues.items()}, idle, tags)


def spoken(text: str, code: str, file: str = "") -> Cues:
    """The cues for a volley of a study in the language `code`: its own (of `file`), unless the volley is in Chinese or English.

    The script says so; between two languages of one script, which has more of its idle words in the text.
    """
    own = cues_of(code, file)
    chinese, english = (own if code == name else cues_of(name) for name in ("zh", "en"))
    if own.language.spaced and own.written(text) and english.written(text):
        return max(own, english, key=lambda known: sum(word in known.idle for word in known.words(text)))
    return next((known for known in (own, chinese) if known.written(text)), english)


def behavior_of(clause: str, asking: bool, speech: Cues) -> Behavior | None:
    """The first behavior of `ORDER` of which a bare clause holds a cue; a clause that asks persuades by a suggestion only."""
    if speech.has("uncoded", clause):
        return None
    for group, behavior in ORDER:
        if group == "question" and asking:
            return behavior
        if speech.has(group, clause) and not (asking and group == "persuade"):
            return behavior
    return None


def asks(sentence: str, speech: Cues) -> bool:
    """Whether a sentence is a question: by its mark, in some languages by its last word too; not by a tag, which only checks."""
    last = CLAUSE.findall(sentence)[-1]
    if last != sentence and last.lower().strip(EDGES) in speech.tags:
        return False
    marked = sentence.rstrip(CLOSERS).endswith(("?", "？"))
    return marked or sentence.rstrip(EDGES).endswith(speech.language.asking)


def utterances(sentence: str, speech: Cues) -> Iterator[Coded]:
    """Cut a sentence where its clauses give cues of different behaviors; reflections are still simple here."""
    clauses = CLAUSE.findall(sentence)
    bare = [speech.bare(clause) for clause in clauses]
    question = asks(sentence, speech)
    last = max((index for index, clause in enumerate(bare) if clause), default=0)
    behavior, text = None, ""
    for index, clause in enumerate(bare):
        asking = question and (index == last or speech.has("interrogative", clause))
        clause_behavior = behavior_of(clause, asking, speech) if clause else None
        if behavior and clause_behavior and clause_behavior != behavior:
            yield Coded(behavior, text)
            behavior, text = clause_behavior, clauses[index]
        else:
            behavior, text = behavior or clause_behavior, text + clauses[index]
    yield Coded(behavior, text)


def settled(utterance: Coded, client: set[str], speech: Cues) -> Coded:
    """Code an utterance that has no cue, and decide whether a reflection is complex. `client`: the client's content."""
    behavior, bare = utterance.behavior, speech.bare(utterance.text)
    if behavior not in (None, Behavior.SIMPLE) or not bare:
        return utterance
    if behavior is None and any(speech.has("uncoded", speech.bare(clause)) for clause in CLAUSE.findall(utterance.text)):
        return utterance
    content = speech.content(bare)
    shared = len(content & client) / len(content) if content else 0.0
    if behavior is None:
        if shared >= ECHO or (speech.has("client", bare) and not speech.has("speaker", bare)):
            behavior = Behavior.SIMPLE
        elif len(content) >= LONG * (1 if speech.language.spaced else 2):
            behavior = Behavior.INFORMATION
    if behavior is Behavior.SIMPLE and shared < OWN and speech.has("meaning", bare):
        behavior = Behavior.COMPLEX
    return Coded(behavior, utterance.text)


def code(client: str, counselor: str, language: str = DEFAULT, cues: str = "") -> list[Coded]:
    """Code a counselor's volley that answers a client's (empty if it opens the session), utterance by utterance.

    The utterances joined are the volley. Persuasion is with permission if the client asked for advice, or if the volley seeks
    collaboration, emphasizes autonomy or leaves the client free. An item of a list goes with the persuasion before it.
    `language`: the study's, `cues`: its file of them, else the bundle's; see `spoken`.
    """
    speech = spoken(counselor, language, cues)
    heard = speech.content(client)
    coded: list[Coded] = []
    for sentence in SENTENCE.findall(counselor):
        for piece in utterances(sentence, speech):
            utterance = settled(piece, heard, speech)
            listed = ITEM.match(utterance.text) and coded and coded[-1].behavior is Behavior.PERSUADE
            coded.append(Coded(Behavior.PERSUADE, utterance.text) if listed else utterance)
    free = {Behavior.SEEK, Behavior.EMPHASIZE} & {utterance.behavior for utterance in coded}
    if free or speech.has("permission", counselor.lower()) or speech.has("asked", client.lower()):
        permitted = Behavior.PERSUADE_WITH
        return [Coded(permitted, utterance.text) if utterance.behavior is Behavior.PERSUADE else utterance for utterance in coded]
    return coded


def counts(dialog: Dialog) -> Counter[Behavior]:
    """The behavior counts of a dialog: what each counselor volley counts for, summed."""
    totals: Counter[Behavior] = Counter()
    client = ""
    for turn in dialog.turns:
        if turn.role == "client":
            client = turn.text
        else:
            totals.update(volley(utterance.behavior for utterance in code(client, turn.text)))
    return totals
