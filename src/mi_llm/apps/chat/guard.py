"""The crisis guard: whether a client's words, or a model's reply, call for help instead of the talk going on.

It reads `guard.yaml` (what to look for: no person and no model decides at run time) and writes nothing. `look` stands in front
of the model: at self-harm, harm to others or abuse the chat answers with the fixed text of `help.yaml` and calls no model.
`fault` is the softer check of a reply. Both are deterministic, know Chinese and English, and miss what their lists do not hold:
see `docs/safety.md`.

A text is looked at folded: compatibility forms, full-width, traditional, look-alike and zero-width characters, accents, emoji and
spellings that stand for a word are brought to the plain form. Everyday idioms are then blanked, and what is left is searched.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal, get_args

from opencc import OpenCC
from pydantic import BaseModel, ConfigDict

from mi_llm import storage

Category = Literal["self_harm", "abuse", "harm"]
Fault = Literal["encourages", "doses", "human"]
CATEGORIES: tuple[Category, ...] = get_args(Category)
WINDOW = 4  # client messages that are also read as one text
ALERT = 3  # client messages after an answer of the guard in which a weaker sign suffices

HAN = r"\u3400-\u9fff"
BETWEEN_HAN = re.compile(rf"(?<=[{HAN}])[\s·•・.*_~|/\\+=^`'\"#-]+(?=[{HAN}])")
LETTERS_APART = re.compile(r"(?<![a-z0-9])(?:[a-z0-9@$!][\s.·*_|~-]+){3,}[a-z0-9@$!](?![a-z0-9])")
LEET = str.maketrans("013457@$!", "oleastasi")
BLANK = "\u25a1"
SIMPLIFIED = OpenCC("t2s")


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
        self.idioms, self.after, self.denials = compiled(lists.idioms), compiled(lists.after), compiled(lists.denials)
        self.crisis = {category: compiled(lists.crisis[category]) for category in CATEGORIES}
        self.replies = {fault: compiled(both) for fault, both in lists.replies.items()}

    def folded(self, text: str) -> Folded:
        """A text in the forms that are searched."""
        plain = unicodedata.normalize("NFKC", text).casefold()
        plain = "".join(
            mark for mark in unicodedata.normalize("NFD", plain) if unicodedata.category(mark) not in ("Mn", "Cf", "Me", "Cs")
        )
        plain = unicodedata.normalize("NFC", plain.translate(self.characters))
        chinese = SIMPLIFIED.convert(BETWEEN_HAN.sub("", plain))
        for variant, replacement in self.variants_zh:
            chinese = variant.sub(replacement, chinese)
        return Folded(chinese, tuple(dict.fromkeys(self.english(plain, most) for most in (2, 1))))

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


def look(messages: Sequence[str], alerted: Sequence[Category] = ()) -> tuple[Category, ...]:
    """The dangers in a client's latest message: categories, the gravest first; () for none.

    `messages` are the client's, the latest last. It is read alone, and as one text with up to `WINDOW` - 1 messages before it, in
    which only what those before it do not already hold counts. `alerted` are the categories of the guard's own answer within
    the last `ALERT` messages, if any: then a goodbye or a means suffices for another answer.
    """
    known = rules()
    latest = known.folded(messages[-1]).without(known.idioms)
    before = [message.strip(" \t\r\n,.!?;:，。！？；：、…~") for message in messages[-WINDOW:-1]]
    earlier = known.folded(run_on(before)).without(known.idioms)
    together = known.folded(run_on([*before, messages[-1]])).without(known.idioms)
    dangers = {
        category
        for category, search in known.crisis.items()
        if search.count(latest) or (before and search.count(together) > search.count(earlier))
    }
    if not dangers and alerted and known.after.count(latest):
        dangers = set(alerted)
    return tuple(category for category in CATEGORIES if category in dangers)


def run_on(messages: Sequence[str]) -> str:
    """Messages as one text: a word may go on from one to the next."""
    return " ".join(messages)


def fault(reply: str) -> Fault | None:
    """What is wrong with a counselor's reply: it encourages self-harm, gives doses, claims to be a human therapist; or None."""
    known = rules()
    text = known.folded(reply).without(known.denials)
    return next((name for name, search in known.replies.items() if search.count(text)), None)
