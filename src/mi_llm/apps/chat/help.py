"""What the chat says instead of the model, and where to find help: `help.yaml`, read and checked. It writes nothing."""

import datetime
from functools import cache
from importlib import resources
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from mi_llm import storage
from mi_llm.apps.chat.guard import CATEGORIES, Category, Strict
from mi_llm.apps.web import Tongue
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
        """Check that a checked line has a date, and only a checked line."""
        if (self.how == "no") != (self.date is None):
            raise ValueError("a checked line needs a date, and only a checked line has one")
        return self


class Line(Strict):
    """One help line: a number to call or a site, the dangers it is for, and the source of this."""

    name: Words
    call: str = Field(default="", pattern=r"^[0-9][0-9 -]*$|^$")
    site: str = Field(default="", pattern=r"^https://[a-z0-9.-]+$|^$")
    hours: Words | None = None
    dangers: tuple[Category, ...] = Field(alias="for")
    source: str
    checked: Checked

    @model_validator(mode="after")
    def reachable(self) -> "Line":
        """Check that a line has either a number or a site."""
        if bool(self.call) == bool(self.site):
            raise ValueError("a line must have either a number to call or a site")
        return self


class Region(Strict):
    """The help lines of one region."""

    id: str
    name: Words
    lines: tuple[Line, ...]


class Answer(Strict):
    """The fixed answer to one danger."""

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
        """Check that each danger has its answer."""
        if set(self.answers) != set(CATEGORIES):
            raise ValueError(f"answers must be given for {', '.join(CATEGORIES)}")
        return self

    def urgent(self, tongue: Tongue, place: str) -> tuple[tuple[Region, tuple[Line, ...]], ...]:
        """The lines that stand on the page whatever happens: those with a number for self-harm, by nearest region."""
        near, _ = self.near(tongue, place)
        return tuple(
            (region, tuple(line for line in region.lines if line.call and "self_harm" in line.dangers)) for region in near
        )

    def near(self, tongue: Tongue, place: str = "") -> tuple[tuple[Region, ...], tuple[Region, ...]]:
        """The region of a place, or else those where a language is most likely read, and the others."""
        likely = ("cn",) if tongue == "zh" else ("us", "uk")
        first = (place,) if any(region.id == place for region in self.regions) else likely
        return (
            tuple(region for name in first for region in self.regions if region.id == name),
            tuple(region for region in self.regions if region.id not in first),
        )


@cache
def bundled() -> Help:
    """The bundle's text and lines; raises Problem where a change of the file made it unusable."""
    try:
        return Help.model_validate(storage.read_yaml(resources.files(__package__) / "help.yaml"))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = ".".join(map(str, fault["loc"])) or "the file"
        raise Problem(
            "apps/chat/help.yaml", f"{field}: {fault['msg']}", "the fields of the lines around it", "correct it"
        ) from None
