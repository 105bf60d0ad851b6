"""The lexical coder: MITI behaviors told from words alone, in Chinese and English (paper, Methods, Manual Evaluation).

It is small, deterministic and fast. It codes what people do not (the miniature, thousands of replies) and is the baseline that a
better coder has to beat. It reads `cues_zh.yaml` and `cues_en.yaml`, or the files that a study names in their place
(`code.cues`), writes nothing, and sees of the dialog only the client's volley before the counselor's. Stage `miti` measures how
far it agrees with experts.

A volley is cut into sentences, a sentence into clauses. Each clause gets the first behavior of `ORDER` of which it holds a cue;
a clause without any joins the one before, so that an utterance is as long as its thought. A sentence without any cue is a
reflection if it repeats the client or speaks of the client only, else it informs if it is long. A reflection is complex if it is
not mostly the client's own words and holds a cue of feeling, meaning, image or two sides.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from mi_llm import storage
from mi_llm.codebook.coding import Behaviour, Coded, volley
from mi_llm.dialog import Dialog
from mi_llm.problem import Problem
from mi_llm.study import Cues

ORDER = (  # precedence: where the manual lets one code go before another (confront, affirm), so do we; else the rarer goes first
    ("confront", Behaviour.CONFRONT),
    ("suggestion", Behaviour.PERSUADE),
    ("persuade", Behaviour.PERSUADE),
    ("emphasize_autonomy", Behaviour.EMPHASIZE),
    ("seek_collaboration", Behaviour.SEEK),
    ("affirm", Behaviour.AFFIRM),
    ("question", Behaviour.QUESTION),
    ("reflection", Behaviour.SIMPLE),
    ("information", Behaviour.INFORMATION),
)
ECHO = 0.3  # an utterance repeats the client if at least this share of its content is in the client's volley
OWN = 0.5  # from this share on, a reflection is mostly the client's own words, hence simple
LONG = 5  # a statement of at least this many content words (in Chinese, twice as many pairs of characters) informs

HAN = re.compile(r"[\u3400-\u9fff]")
WORD = re.compile(r"[a-z0-9]+(?:['-][a-z0-9]+)*")
SENTENCE = re.compile(
    r"""(?:(?:Mrs?|Ms|Dr|\d)\.|\.(?=\S)|[^。！？!?；;.\n])+[。！？!?；;.\n]*[”’」』）")\s]*|[。！？!?；;.\n]+[”’」』）")\s]*"""
)
CLAUSE = re.compile(r"(?:[^，,：—-]|-(?![-\s]))+[，,：—\s-]*|[，,：—-]+")
EDGES = " \t\r\n.,-–—，、。！？!?：…\"'“”‘’*#0123456789)）"
CLOSERS = ' \n”’」』）")*'
STUTTER = re.compile(r"\b([\w']+)-+\s?(?=\1)")  # transcripts of speech
ITEM = re.compile(r"\s*(?:\d+[.、)）]|[-*•]\s)")


@dataclass(frozen=True)
class Language:
    """The cues of one language: a pattern for each group; `idle` words carry no content, `tags` are endings that only check."""

    cues: Mapping[str, re.Pattern[str]]
    idle: tuple[str, ...]
    tags: frozenset[str]
    chinese: bool

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
        """The content of a text: its words, or in Chinese its pairs of neighboring characters, without idle words."""
        if not self.chinese:
            return set(WORD.findall(text.lower().replace("’", "'"))) - set(self.idle)
        for word in self.idle:
            text = text.replace(word, " ")
        return {run[start : start + 2] for run in re.findall(r"[\u3400-\u9fff]{2,}", text) for start in range(len(run) - 1)}


def words(cues: str) -> list[str]:
    """The cues of a group, longest first, so that a longer cue matches before a shorter one that it begins with."""
    return sorted((cue.strip() for cue in cues.split(",")), key=len, reverse=True)


def pattern(cues: Iterable[str], chinese: bool) -> re.Pattern[str]:
    """One expression for a group of cues, in the notation of the cue files."""
    gap, begin, end = (".{0,12}?", "", "") if chinese else (r" (?:[\w',-]+ ){0,4}", r"(?<![\w'])", r"(?![\w'])")
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
def language(name: str, file: str = "") -> Language:
    """The language `zh` or `en` by a file of cues, the bundle's or a study's; raises Problem for one that lacks a group."""
    bundled = storage.read_yaml(resources.files(__package__) / f"cues_{name}.yaml")
    groups = storage.read_yaml(Path(file)) if file else bundled
    for group in bundled:
        entry = groups.get(group) if isinstance(groups, dict) else None
        if not (isinstance(entry, dict) and isinstance(entry.get("cues"), str)):
            remedy = f"see src/mi_llm/codebook/cues_{name}.yaml for the groups"
            raise Problem(file, f"no group {group} with `cues`", ", ".join(bundled), remedy)
    cues = {group: words(groups[group]["cues"]) for group in bundled}
    idle, tags = tuple(cues.pop("idle")), frozenset(cues.pop("tags"))
    return Language({group: pattern(listed, name == "zh") for group, listed in cues.items()}, idle, tags, name == "zh")


def spoken(text: str, cues: Cues | None = None) -> Language:
    """The language of a volley: Chinese if a third of its characters are Chinese. `cues`: a study's files, else the bundle's."""
    name = "zh" if 3 * len(HAN.findall(text)) > len(text) else "en"
    return language(name, getattr(cues, name, ""))


def behaviour_of(clause: str, asking: bool, speech: Language) -> Behaviour | None:
    """The first behavior of `ORDER` of which a bare clause holds a cue; a clause that asks persuades by a suggestion only."""
    if speech.has("uncoded", clause):
        return None
    for group, behaviour in ORDER:
        if group == "question" and asking:
            return behaviour
        if speech.has(group, clause) and not (asking and group == "persuade"):
            return behaviour
    return None


def asks(sentence: str, speech: Language) -> bool:
    """Whether a sentence is a question: by its mark, in Chinese by its last word too; not by a tag, which only checks."""
    last = CLAUSE.findall(sentence)[-1]
    if last != sentence and last.lower().strip(EDGES) in speech.tags:
        return False
    marked = sentence.rstrip(CLOSERS).endswith(("?", "？"))
    return marked or (speech.chinese and sentence.rstrip(EDGES).endswith(("吗", "呢")))


def utterances(sentence: str, speech: Language) -> Iterator[Coded]:
    """Cut a sentence where its clauses give cues of different behaviors; reflections are still simple here."""
    clauses = CLAUSE.findall(sentence)
    bare = [speech.bare(clause) for clause in clauses]
    question = asks(sentence, speech)
    last = max((index for index, clause in enumerate(bare) if clause), default=0)
    behaviour, text = None, ""
    for index, clause in enumerate(bare):
        asking = question and (index == last or speech.has("interrogative", clause))
        clause_behaviour = behaviour_of(clause, asking, speech) if clause else None
        if behaviour and clause_behaviour and clause_behaviour != behaviour:
            yield Coded(behaviour, text)
            behaviour, text = clause_behaviour, clauses[index]
        else:
            behaviour, text = behaviour or clause_behaviour, text + clauses[index]
    yield Coded(behaviour, text)


def settled(utterance: Coded, client: set[str], speech: Language) -> Coded:
    """Code an utterance that has no cue, and decide whether a reflection is complex. `client`: the client's content."""
    behaviour, bare = utterance.behaviour, speech.bare(utterance.text)
    if behaviour not in (None, Behaviour.SIMPLE) or not bare:
        return utterance
    if behaviour is None and any(speech.has("uncoded", speech.bare(clause)) for clause in CLAUSE.findall(utterance.text)):
        return utterance
    content = speech.content(bare)
    shared = len(content & client) / len(content) if content else 0.0
    if behaviour is None:
        if shared >= ECHO or (speech.has("client", bare) and not speech.has("speaker", bare)):
            behaviour = Behaviour.SIMPLE
        elif len(content) >= LONG * (1 + speech.chinese):
            behaviour = Behaviour.INFORMATION
    if behaviour is Behaviour.SIMPLE and shared < OWN and speech.has("meaning", bare):
        behaviour = Behaviour.COMPLEX
    return Coded(behaviour, utterance.text)


def code(client: str, counselor: str, cues: Cues | None = None) -> list[Coded]:
    """Code a counselor's volley that answers a client's (empty if it opens the session), utterance by utterance.

    `cues`: a study's files, else the bundle's. The utterances joined are the volley. Persuasion is with permission if the client
    asked for advice, or if the volley seeks collaboration, emphasizes autonomy or leaves the client free. An item of a list goes
    with the persuasion before it.
    """
    speech = spoken(counselor, cues)
    heard = speech.content(client)
    coded: list[Coded] = []
    for sentence in SENTENCE.findall(counselor):
        for piece in utterances(sentence, speech):
            utterance = settled(piece, heard, speech)
            listed = ITEM.match(utterance.text) and coded and coded[-1].behaviour is Behaviour.PERSUADE
            coded.append(Coded(Behaviour.PERSUADE, utterance.text) if listed else utterance)
    free = {Behaviour.SEEK, Behaviour.EMPHASIZE} & {utterance.behaviour for utterance in coded}
    if free or speech.has("permission", counselor.lower()) or speech.has("asked", client.lower()):
        permitted = Behaviour.PERSUADE_WITH
        return [
            Coded(permitted, utterance.text) if utterance.behaviour is Behaviour.PERSUADE else utterance for utterance in coded
        ]
    return coded


def counts(dialog: Dialog) -> Counter[Behaviour]:
    """The behavior counts of a dialog: what each counselor volley counts for, summed."""
    totals: Counter[Behaviour] = Counter()
    client = ""
    for turn in dialog.turns:
        if turn.role == "client":
            client = turn.text
        else:
            totals.update(volley(utterance.behaviour for utterance in code(client, turn.text)))
    return totals
