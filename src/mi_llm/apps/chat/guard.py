"""The crisis guard: whether a client's words, or a model's reply, call for help instead of the talk going on.

It reads `guard.yaml` (expressions to look for) and the coefficients of `detector.py`; no person and no model decides at run time.
It writes nothing. `look` stands in front of the model, in two tiers. *Plain* danger: the chat answers with the fixed text of
`help.yaml` and calls no model. *Possible* danger: the talk goes on, its reply is checked, and help lines stand under it. `faults`
checks a reply. All are deterministic, know Chinese and English, and miss things: see `docs/safety.md`.

A text is looked at folded: compatibility forms, full-width, traditional, look-alike and invisible characters, accents, emoji and
spellings that stand for a word are brought to the plain form. Everyday idioms and denials are then blanked, and what is left is
searched.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal, get_args

from opencc import OpenCC
from pydantic import BaseModel, ConfigDict

from mi_llm import storage
from mi_llm.apps.chat import detector

Category = Literal["self_harm", "abuse", "harm"]
Fault = Literal["encourages", "doses", "human", "blames", "isolates", "promises", "diagnoses"]
Tier = Literal["plain", "possible", "none"]
CATEGORIES: tuple[Category, ...] = get_args(Category)
FAULTS: tuple[Fault, ...] = get_args(Fault)
WINDOW = 8  # client messages that are also read as one text
EARLIER = 200  # characters of each message before the latest that are read with it
LONGEST = 3000  # characters of a text that are read; of a longer one the first and the last half of them
PLAIN, POSSIBLE = 0.58, 0.22  # the detector's scores from which a tier is reached
WITHHELD, CAREFUL = 0.68, 0.52  # and from which a reply is withheld; the second where the client may be in danger
GRAVE = 0.06  # the score of plain danger below which danger is only possible
LATER = 0.75  # instead of `PLAIN` for a message that is not the first: a talk has many, and each could alarm needlessly
DOUBTED = 0.25  # below it what the lists find is only possible danger
ALERT = 3  # client messages after an answer of the guard in which a weaker sign suffices

HAN = r"\u3400-\u9fff"
BETWEEN_HAN = re.compile(rf"(?<=[{HAN}])(?:(?![。！？!?,，；;:：])[\W_])+(?=[{HAN}])")
ONE_BY_ONE = re.compile(rf"(?<![{HAN}])[{HAN}](?:[^{HAN}\w]{{1,3}}+[{HAN}]){{2,}}(?![{HAN}])")
INVISIBLE = frozenset("\u115f\u1160\u3164\uffa0\u2800")  # drawn as nothing, though Unicode calls them letters or signs
LETTERS_APART = re.compile(r"(?<![a-z0-9])(?:[a-z0-9@$!][\s.·*_|~-]++){3,}[a-z0-9@$!](?![a-z0-9])")
LEET = str.maketrans("013457@$!", "oleastasi")
CLAUSES = re.compile(r"[,，、:：…~]+")
ASKED = re.compile(r"[?？]+")
ENDED = re.compile(r".*[。！？.!?\n]", re.DOTALL)  # the sentences of a text that have ended
BLANK = "\u25a1"
SIMPLIFIED = OpenCC("t2s")
FILLERS = re.compile(
    r"(?:[嗯呃啊哦唔额唉哎]|那个|就是|然后|其实|怎么说呢|怎么说|算了|没什么|我想想|你在吗|在吗|好吧|u++h++|u++m++|h++m++|er++|well|like|so|idk"
    r"|i mean|you know|yeah|okay|ok|wait|[\W_])++"
)


class Strict(BaseModel):
    """A part of a file: no unknown fields, no change after reading."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Both(Strict):
    """Regular expressions, for Chinese and for English."""

    zh: tuple[str, ...] = ()
    en: tuple[str, ...] = ()


class Lists(Strict):
    """What `guard.yaml` holds; the file explains each part. `<name>` in an expression stands for a part of `words`."""

    words: dict[str, str]
    characters: dict[str, str]
    variants: Both
    idioms: Both
    denied: Both
    returns: Both
    crisis: dict[Category, Both]
    after: Both
    denials: Both
    replies: dict[Fault, Both]


@dataclass(frozen=True)
class Search:
    """The compiled expressions of one kind, in both languages."""

    zh: re.Pattern[str]
    en: re.Pattern[str]

    def count(self, text: "Folded") -> int:
        """The number of matches in a text."""
        return sum(1 for _ in self.zh.finditer(text.zh)) + max(sum(1 for _ in self.en.finditer(form)) for form in text.en)


@dataclass(frozen=True)
class Folded:
    """A text as it is searched: for Chinese without anything between ideographs, for English as words (each way to read it)."""

    zh: str
    en: tuple[str, ...]

    def without(self, search: Search) -> "Folded":
        """The text with what a search finds blanked."""
        return Folded(search.zh.sub(BLANK, self.zh), tuple(search.en.sub(BLANK, form) for form in self.en))


class Rules:
    """The lists, ready to search with."""

    def __init__(self, lists: Lists) -> None:
        def compiled(both: Both) -> Search:
            return Search(pattern(both.zh), pattern(both.en))

        def spelled(part: str) -> str:
            return re.sub(r"(?<!\?)<(\w+)>", lambda name: f"(?:{spelled(lists.words[name[1]])})", part)

        def pattern(parts: Iterable[str]) -> re.Pattern[str]:
            return re.compile("|".join(f"(?:{spelled(part)})" for part in parts) or r"(?!)")

        self.characters = str.maketrans({sign: plain for variants, plain in lists.characters.items() for sign in variants})
        self.variants_zh = [(pattern([expression]), plain) for expression, plain in map(spelling, lists.variants.zh)]
        self.variants_en = [(pattern([expression]), plain) for expression, plain in map(spelling, lists.variants.en)]
        self.idioms, self.denied, self.returns = compiled(lists.idioms), compiled(lists.denied), compiled(lists.returns)
        self.after, self.denials = compiled(lists.after), compiled(lists.denials)
        self.crisis = {category: compiled(lists.crisis[category]) for category in CATEGORIES}
        self.replies = {fault: compiled(both) for fault, both in lists.replies.items()}

    def folded(self, text: str) -> Folded:
        """A text in the forms that are searched."""
        plain = shortened(unicodedata.normalize("NFKC", shortened(text))).casefold()
        plain = "".join(
            mark
            for mark in unicodedata.normalize("NFD", plain)
            if unicodedata.category(mark) not in ("Mn", "Cf", "Me", "Cs") and mark not in INVISIBLE
        )
        plain = unicodedata.normalize("NFC", plain.translate(self.characters))
        plain = ONE_BY_ONE.sub(lambda spaced: re.sub(rf"[^{HAN}]", "", spaced[0]), plain)
        chinese = SIMPLIFIED.convert(BETWEEN_HAN.sub("", plain))
        for variant, replacement in self.variants_zh:
            chinese = variant.sub(replacement, chinese)
        return Folded(chinese, tuple(dict.fromkeys(self.english(plain, most) for most in (2, 1))))

    def calm(self, text: "Folded") -> "Folded":
        """A folded text without idioms, and without denials that nothing after them takes back."""

        def blank(search: re.Pattern[str], returns: re.Pattern[str], form: str) -> str:
            return search.sub(lambda match: match[0] if returns.search(form, match.end()) else BLANK, form)

        text = text.without(self.idioms)
        return Folded(
            blank(self.denied.zh, self.returns.zh, text.zh),
            tuple(blank(self.denied.en, self.returns.en, form) for form in text.en),
        )

    def plain(self, text: Folded, most: int = 2) -> str:
        """A text as the detector reads it: both languages in one, ` . ` between clauses, an idiom, denial or `?` as a word."""
        chinese = ASKED.sub(" asked . ", self.idioms.zh.sub(" idiom ", text.zh))
        chinese = self.denied.zh.sub(
            lambda match: match[0] if self.returns.zh.search(chinese, match.end()) else " denied ", chinese
        )
        english = self.idioms.en.sub("idiom", self.english(CLAUSES.sub(" . ", chinese), most))
        return self.denied.en.sub(lambda match: match[0] if self.returns.en.search(english, match.end()) else "denied", english)

    def english(self, plain: str, most: int) -> str:
        """Words with one space between, ` . ` where a sentence ends; a letter repeated more than twice is kept `most` times."""
        text = LETTERS_APART.sub(lambda spaced: re.sub(r"[^a-z0-9@$!]", "", spaced[0]), plain)
        text = re.sub(r"['\u2018\u2019`\u00b4]", "", text)
        text = re.sub(r"(?<![a-z0-9@$!])[a-z0-9@$!]*[a-z][a-z0-9@$!]*", lambda word: bare(word[0]), text)
        text = re.sub(r"([a-z])\1{2,}", lambda run: run[1] * most, text)
        text = re.sub(r"[.!?;\n。！？；]+", " . ", text)
        text = " ".join(re.sub(rf"[^a-z0-9.{HAN}]+", " ", text).split())
        for variant, replacement in self.variants_en:
            text = variant.sub(replacement, text)
        return text


def bare(word: str) -> str:
    """A word with its digits and signs read as letters (`su1c1de`); an exclamation mark at its end belongs to the sentence."""
    stem = word.rstrip("!")
    inside = re.sub(r"(?<=[a-z])1(?=[a-z])", "i", stem)
    return inside.translate(LEET) + word[len(stem) :] if not re.fullmatch(r"\d+[a-z]{1,3}", inside) else word


def spelling(line: str) -> tuple[str, str]:
    """Split `expression => word`."""
    expression, _, word = line.partition(" => ")
    return expression, word


@cache
def rules() -> Rules:
    """The bundle's lists."""
    content = storage.read_yaml(resources.files(__package__) / "guard.yaml")
    return Rules(Lists.model_validate(content))


@dataclass(frozen=True)
class Danger:
    """What the guard sees in a client's latest message: the tier, and the categories in it, the gravest first."""

    tier: Tier = "none"
    categories: tuple[Category, ...] = ()


def ready() -> None:
    """Read the lists and the coefficients, so that the first message does not wait for them."""
    look(["。"])
    fault("。")


def look(messages: Sequence[str], alerted: Sequence[Category] = ()) -> Danger:
    """The danger in a client's latest message.

    `messages` are the client's, the latest last. It is read alone, and as one text with up to `WINDOW` - 1 messages before it, in
    which only what those before it do not already hold counts. `alerted` are the categories of the guard's own answer within
    the last `ALERT` messages, if any: then a goodbye or a means suffices for another answer.
    """
    known = rules()
    folded = known.folded(messages[-1])
    latest = known.calm(folded)
    before = [said for message in messages[-WINDOW:-1] if (said := spoken(message[-EARLIER:]))]
    earlier = known.calm(known.folded(run_on(before)))
    running = known.folded(run_on([*before, spoken(messages[-1][:LONGEST])]))
    together = known.calm(running)
    score = scores("messages", folded)
    joined = scores("messages", known.folded(", ".join([*before, messages[-1][:EARLIER]])))[detector.ANY] if before else 0.0
    past = scores("messages", known.folded(", ".join(before)))[detector.ANY] if before else 0.0
    alone = {category for category, search in known.crisis.items() if search.count(latest)}
    across = {name for name, search in known.crisis.items() if before and search.count(together) > search.count(earlier)}
    listed = alone | across
    surest = score[detector.ANY]
    likeliest = {name for name in CATEGORIES if score[name] == max(score[other] for other in CATEGORIES)}
    plain = likeliest if surest >= (LATER if before else PLAIN) and score[detector.GRAVE] >= GRAVE else set()
    plain |= alone if surest >= DOUBTED and score[detector.GRAVE] >= GRAVE else set()
    plain |= across if across and max(surest, scores("messages", running)[detector.ANY]) >= DOUBTED else set()
    if alerted and not alone and known.after.count(latest):  # what the guard answered says what it is about
        plain = set(alerted)
    possible = listed | (likeliest if max(surest, joined if joined > past else 0.0) >= POSSIBLE else set())
    tier: Tier = "plain" if plain else "possible" if possible else "none"
    return Danger(tier, tuple(category for category in CATEGORIES if category in (plain or possible)))


def scores(name: str, text: Folded) -> dict[str, float]:
    """The detector's scores of a folded text: the surest of the ways to read its English."""
    learned = detector.bundled(name)
    seen: dict[str, frozenset[str]] = {}
    ways = [learned.scores(rules().plain(text, most), seen) for most in (2, 1)[: len(text.en)]]
    return max(ways, key=lambda way: way[detector.ANY])


def dangers(messages: Sequence[str]) -> Iterator[Danger]:
    """The danger in each of a talk's client messages, as the chat sees it, which remembers that it answered."""
    alert: tuple[Category, ...] = ()
    left = 0
    for number in range(1, len(messages) + 1):
        danger = look(messages[:number], alert if left else ())
        left = ALERT if danger.tier == "plain" else max(0, left - 1)
        alert = danger.categories if danger.tier == "plain" else alert
        yield danger


def follow(messages: Sequence[str]) -> tuple[Danger, int | None]:
    """The greatest danger in a talk's client messages, and the number (from 1) of the message at which it was first seen."""
    worst, at = Danger(), None
    for number, danger in enumerate(dangers(messages), 1):
        if TIERS.index(danger.tier) > TIERS.index(worst.tier):
            worst, at = danger, number
    return worst, at


TIERS: tuple[Tier, ...] = ("none", "possible", "plain")


def shortened(text: str) -> str:
    """The first and the last `LONGEST` / 2 characters of a text that is longer."""
    return text if len(text) <= LONGEST else text[: LONGEST // 2] + text[-LONGEST // 2 :]


def spoken(message: str) -> str:
    """A message as part of a sentence that runs over several: without marks at its ends; empty if it holds only fillers."""
    stripped = message.strip(" \t\r\n,.!?;:，。！？；：、…~")
    return "" if FILLERS.fullmatch(stripped.casefold()) else stripped


def run_on(messages: Sequence[str]) -> str:
    """Messages as one text: a word may go on from one to the next."""
    return " ".join(messages)


def fault(reply: str, *, in_danger: bool = False, coming: bool = False) -> Fault | None:
    """The first of the `faults` of a counselor's reply, or None."""
    return next(iter(faults(reply, in_danger=in_danger, coming=coming)), None)


def faults(reply: str, *, in_danger: bool = False, coming: bool = False) -> tuple[Fault, ...]:
    """What is wrong with a counselor's reply; a doubtful one suffices where the client may be `in_danger`.

    Of a reply that is still `coming` the detector, which learned from whole sentences, reads those that have ended.

    It encourages harm, speaks of doses or stopping medicine, claims to be a human therapist, blames, isolates (secrecy, no other
    help), promises what nobody can, or diagnoses.
    """
    known = rules()
    folded = known.folded(reply)
    text = folded.without(known.denials)
    listed = {name for name, search in known.replies.items() if search.count(text)}
    if coming:
        ended = ENDED.match(reply)
        folded = known.folded(ended[0] if ended else "")
    score = scores("replies", folded)
    if score[detector.ANY] >= (CAREFUL if in_danger else WITHHELD):
        listed.add(max(FAULTS, key=lambda name: score.get(name, 0.0)))
    return tuple(name for name in FAULTS if name in listed)
