"""A language of studies: `<language>/language.yaml`, what programs must know of it, and where its other files lie.

The other files of the folder are read by the modules that use them: prompts by `prompts.py`, cues by the lexical coder, …
"""

import logging
import re
from collections.abc import Iterator
from functools import cache, cached_property
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from mi_llm import registry, storage
from mi_llm.problem import Problem

CHINESE = re.compile("[\u4e00-\u9fff]")  # a Chinese character of common use
DEFAULT = "zh"  # the paper's, and that of studies that name none


class Section(BaseModel):
    """A part of a language's file; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Text:
    """The same words in the two languages of the pages."""

    en: str
    zh: str


class Labels(Section):
    """How transcripts label the speakers, in small letters; prompts use the first of each."""

    client: tuple[str, ...]
    counselor: tuple[str, ...]


class Persons(Section):
    """Regular expressions of the words by which speakers mean themselves and the other: `mi-llm import` guesses by them."""

    own: str
    other: str


class Scores(Section):
    """What a word is in scores: the name of sacreBLEU's tokenizer, and that of NLTK's stemmer for ROUGE (`none`: no stemming)."""

    sacrebleu: str
    stemmer: str


class Language(Section):
    """What `language.yaml` says.

    `code`: the folder's name. `name`: what the pages call it. `tag`: for browsers and screen readers (BCP 47). `letters`: the
    script's letters, as between the brackets of a regular expression. `words`: whether spaces stand between words; if not,
    characters count, or `jieba` cuts Chinese. `ends`: with what a sentence may end. `asking`: words that make a question at a
    sentence's end without a mark. `someone`: what stands for a removed name. `opening`, `farewell`, `silence`: what a language
    model that plays a client is told to begin, writes at the end of the talk, and is given for an empty reply. `any_reply`: a
    counselor's reply that fits any client.
    """

    code: str
    name: Text
    tag: str
    letters: str
    words: Literal["spaces", "characters", "jieba"]
    labels: Labels
    persons: Persons
    ends: str
    asking: tuple[str, ...]
    someone: str
    opening: str
    farewell: str
    silence: str
    any_reply: str
    reference: str
    empty: str
    scores: Scores

    @property
    def spaced(self) -> bool:
        """Whether spaces stand between words."""
        return self.words == "spaces"

    @property
    def joint(self) -> str:
        """What stands between two sentences."""
        return " " if self.spaced else ""

    @property
    def colon(self) -> str:
        """What stands between a speaker's label and the volley."""
        return ": " if self.spaced else "："

    @property
    def labeled(self) -> dict[str, str]:
        """The label of each role, with a capital."""
        return {"client": self.labels.client[0].capitalize(), "counselor": self.labels.counselor[0].capitalize()}

    @cached_property
    def letter(self) -> re.Pattern[str]:
        """A letter of the script."""
        return re.compile(f"[{self.letters}]")

    def share(self, text: str) -> float:
        """The script's letters among the letters of a text; 0 where there are none."""
        letters = [character for character in text if character.isalpha()]
        return sum(map(bool, map(self.letter.match, letters))) / len(letters) if letters else 0.0

    def cut(self, text: str) -> Iterator[str]:
        """The words of a text, in small letters where spaces stand between them; jieba's may be white space."""
        if self.words == "jieba":
            import jieba

            jieba.setLogLevel(logging.WARNING)
            yield from jieba.cut(text)
        elif self.spaced:
            yield from re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower())
        else:
            yield from (character for character in text if not character.isspace())

    def file(self, name: str) -> Traversable:
        """One of the language's files."""
        return folder(self.code) / name

    def read(self, name: str) -> Any:
        """What a YAML file of the language holds."""
        return storage.read_yaml(self.file(name))


def folder(code: str) -> Traversable:
    """The folder of a language."""
    return resources.files(__package__) / code


@cache
def load(code: str) -> Language:
    """The language of a folder; raises Problem for one that has none, or whose file is faulty."""
    if code not in registry.languages():
        known = ", ".join(registry.languages())
        raise Problem(f"language {code}", "unknown", f"one of {known}", "correct it, or add a folder: docs/adding-a-language.md")
    file = folder(code) / "language.yaml"
    try:
        return Language.model_validate({"code": code, **storage.read_yaml(file)})
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        found = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
        raise Problem(str(file), found, "what docs/adding-a-language.md lists", "correct the file") from None


def every() -> list[Language]:
    """All languages that have a folder."""
    return [load(code) for code in registry.languages()]
