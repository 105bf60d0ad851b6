"""What the parsers of all formats give: dialogs whose speakers are still labels."""

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

SYSTEM = "system"  # the label of what nobody says: prompts, and calls of tools with their results
TOOL = "tool"


@dataclass(frozen=True)
class Volley:
    """Who speaks, as the file labels them; what they say; and where that stands."""

    label: str
    text: Any
    where: str


@dataclass
class Draft:
    """A dialog as one file has it. `named`: whether the file itself gives its id; `shape`: the format in words."""

    id: str
    file: str
    shape: str
    volleys: list[Volley]
    named: bool = False
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def spoken(self) -> list[Volley]:
        """The volleys, without prompts and tools."""
        return [volley for volley in self.volleys if volley.label not in (SYSTEM, TOOL)]


def id_of(file: str) -> str:
    """The id of a file's dialog: its name without suffix, with the folders in which it lies."""
    return PurePosixPath(file).with_suffix("").as_posix().replace("/", "-")
