"""The CHART checklist filled from a run: `checklist.yaml` has the items, this module puts in what the run says.

An item without a place in the pages, or whose place needs what this run lacks, is shown as not answered, with the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from mi_llm import storage


@dataclass(frozen=True)
class Item:
    """One item in one language: what it asks, the answer and its place; without a place, `answer` is the reason."""

    number: str
    name: str
    answer: str
    place: str

    @property
    def page(self) -> str:
        """The page where the answer is: a name of `report.page.PAGES`."""
        return self.place.partition(".")[0]

    @property
    def section(self) -> str:
        """The section of that page where the answer is; `main` is the whole page."""
        return self.place.partition("#")[2]


@dataclass(frozen=True)
class Part:
    """One of the checklist's twelve parts."""

    number: str
    name: str
    items: tuple[Item, ...]


def checklist(lang: str, context: Mapping[str, Any]) -> list[Part]:
    """The checklist in a language; a place leads to the page in that language."""
    environment = Environment(undefined=StrictUndefined)  # noqa: S701 — plain words; the page escapes them

    def fill(text: str) -> str:
        return environment.from_string(text).render(context)

    def item(entry: dict[str, Any]) -> Item:
        place = fill(entry.get("place", ""))
        texts = entry["answer" if place else "because"]
        address = place.replace(".html", f"{context['suffix']}.html")
        return Item(entry["number"], entry["name"][lang], fill(texts[lang]), address)

    content = storage.read_yaml(resources.files(__package__) / "checklist.yaml")
    return [Part(part["number"], part["name"][lang], tuple(map(item, part["items"]))) for part in content]


def as_table(parts: list[Part]) -> pd.DataFrame:
    """The checklist as a table, for its CSV file."""
    rows = [
        {
            "Item": item.number,
            "Name": item.name,
            "Answered": "yes" if item.place else "no",
            "Answer or reason": item.answer,
            "Place": item.place,
        }
        for part in parts
        for item in part.items
    ]
    return pd.DataFrame(rows).set_index("Item")
