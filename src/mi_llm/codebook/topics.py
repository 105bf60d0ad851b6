"""The topics of Table 5, recognized by words: `topics.yaml` lists them for AnnoMI's own labels and for what clients say."""

from functools import cache
from importlib import resources
from typing import Literal

from ruamel.yaml import YAML


@cache
def words(kind: Literal["annomi", "simulated"]) -> dict[str, list[str]]:
    """The words of each topic: in AnnoMI's labels, or in what the client says."""
    content = YAML(typ="safe").load((resources.files(__package__) / "topics.yaml").read_text(encoding="utf-8"))
    return dict(content[kind])


def topic(text: str, known: dict[str, list[str]]) -> str:
    """The first topic one of whose words stands first in the text, or `Other`."""
    places = [
        (text.lower().find(word.lower()), order, name)
        for order, (name, some) in enumerate(known.items())
        for word in some
        if word.lower() in text.lower()
    ]
    return min(places)[2] if places else "Other"
