"""What the chat says in place of the model, and where help is: `help.yaml`, read and checked. It writes nothing."""

import datetime
from functools import cache
from importlib import resources
from typing import Literal

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML

from mi_llm.apps.chat.guard import CATEGORIES, Category, Strict
from mi_llm.apps.language import Tongue
from mi_llm.problem import Problem


class Words(Strict):
    """The same words in both languages."""

    zh: str
    en: str


class Paragraphs(Strict):
    """The same paragraphs in both languages."""

    zh: tuple[str, ...]
    en: tuple[str, ...]


class Checked(Strict):
    """How a line was checked against its source, and when: on a stored `copy` of the page, on the `live` page, or not at all."""

    how: Literal["copy", "live", "no"]
    date: datetime.date | None

    @model_validator(mode="after")
    def dated(self) -> "Checked":
        """A check has a date, and only a check has one."""
        if (self.how == "no") != (self.date is None):
            raise ValueError("a checked line needs a date, and only a checked line has one")
        return self


class Line(Strict):
    """One help line: a number to call, or a site; for which dangers; and where that is known from."""

    name: Words
    call: str = Field(default="", pattern=r"^[0-9][0-9 -]*$|^$")
    site: str = Field(default="", pattern=r"^https://[a-z0-9.-]+$|^$")
    hours: Words | None = None
    dangers: tuple[Category, ...] = Field(alias="for")
    source: str
    checked: Checked

    @model_validator(mode="after")
    def reachable(self) -> "Line":
        """A line has a number or a site."""
        if bool(self.call) == bool(self.site):
            raise ValueError("a line must have either a number to call or a site")
        return self


class Region(Strict):
    """The lines of one place."""

    id: str
    name: Words
    lines: tuple[Line, ...]


class Answer(Strict):
    """What is said about one danger."""

    title: Words
    text: Paragraphs


class Review(Strict):
    """Who has read the fixed text, and when."""

    by: str
    date: datetime.date | None


class Help(Strict):
    """All of `help.yaml`."""

    review: Review
    answers: dict[Category, Answer]
    regions: tuple[Region, ...]

    @model_validator(mode="after")
    def complete(self) -> "Help":
        """Each danger has its answer."""
        if set(self.answers) != set(CATEGORIES):
            raise ValueError(f"answers must be given for {', '.join(CATEGORIES)}")
        return self

    def near(self, tongue: Tongue) -> tuple[tuple[Region, ...], tuple[Region, ...]]:
        """The places where a language is most likely read, and the others."""
        first = ("cn",) if tongue == "zh" else ("us", "uk")
        return (
            tuple(region for name in first for region in self.regions if region.id == name),
            tuple(region for region in self.regions if region.id not in first),
        )


@cache
def bundled() -> Help:
    """The bundle's text and lines; raises Problem where a change of the file made it unusable."""
    try:
        return Help.model_validate(
            YAML(typ="safe").load((resources.files(__package__) / "help.yaml").read_text(encoding="utf-8"))
        )
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"])) or "the file"
        raise Problem(
            "apps/chat/help.yaml", f"{place}: {fault['msg']}", "the fields of the lines around it", "correct it"
        ) from None
