"""What all readers share: they refuse what they do not understand, and report every change they make.

A reader turns files into dialogs. Where it must change anything (a label it knows under another name, two volleys of one
speaker, an empty turn), it notes a repair: these are counted by kind, with the first example kept, in `repairs.csv`. So are
dialogs that it leaves out, since a label inside a volley leaves open who speaks.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mi_llm.corpora.files import File
from mi_llm.corpora.labels import ROLES, role_of, split_volley
from mi_llm.dialog import Dialog, Turn
from mi_llm.problem import Problem


@dataclass
class Repairs:
    """Counts of what readers changed, by kind, each with the place of its first occurrence."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def note(self, kind: str, where: str) -> None:
        """Count one repair."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.examples.setdefault(kind, where)

    def rows(self) -> list[dict[str, object]]:
        """Rows of `repairs.csv`: repair, count, example."""
        return [{"repair": kind, "count": self.counts[kind], "example": self.examples[kind]} for kind in sorted(self.counts)]


def require(condition: bool, where: str, found: str, expected: str) -> None:
    """Raise Problem unless the condition holds: the corpus's format does not allow this input."""
    if not condition:
        shown = found if len(found) <= 300 else f"{found[:300]}…"
        raise Problem(where, shown, expected, "restore the file from its source, or correct it")


def parse_list(file: File, of: str) -> list[Any]:
    """Parse a JSON file that must hold a list; raises Problem with file and line if it does not. `of` says of what."""
    try:
        entries = json.loads(file.text())
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise Problem(
            f"{file.name}{line}", f"not JSON ({error})", "a JSON document", "restore the file from its source, or correct it"
        ) from None
    require(isinstance(entries, list), file.name, f"a JSON {type(entries).__name__}", f"a list of {of}")
    return list(entries)


def parse_entries(files: Iterable[File], of: str, key: str) -> Iterator[tuple[str, int, str, dict[str, Any]]]:
    """Parse `.json` files with lists of objects that hold a list `key`; yields (file's name, index, where, object)."""
    for file in files:
        if file.name.endswith(".json"):
            for index, entry in enumerate(parse_list(file, f"{of}s")):
                where = f"{file.name}, {of} {index + 1}"
                require(isinstance(entry, dict) and isinstance(entry.get(key), list), where, f"no list `{key}`", f"a {of}")
                yield file.name, index, where, entry


def parse_lines(file: File, of: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Parse JSON Lines that must hold one object per line; yields (line number, where, object), without empty lines."""
    for number, line in enumerate(file.text().split("\n"), 1):
        if line.strip():
            where = f"{file.name}, line {number}"
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise Problem(where, f"not JSON ({error})", f"{of}, one JSON object per line", "restore the file") from None
            require(isinstance(entry, dict), where, f"a JSON {type(entry).__name__}", of)
            yield number, where, entry


def unique(dialogs: Iterable[Dialog], repairs: Repairs) -> Iterator[Dialog]:
    """Yield the dialogs, those whose id another one before had under that id and a number."""
    known: set[str] = set()
    for dialog in dialogs:
        name, number = dialog.id, 1
        while name in known:
            number += 1
            name = f"{dialog.id}-{number}"
        known.add(name)
        if number > 1:
            repairs.note("id used before, number added", name)
        yield dialog if number == 1 else dialog.model_copy(update={"id": name})


def assemble(
    name: str, source: str, volleys: Iterable[tuple[Any, Any, str]], repairs: Repairs, meta: dict[str, Any]
) -> Iterator[Dialog]:
    """Yield the dialog of `(label, text, where)` triples, or nothing where a label inside a volley leaves open who speaks.

    Labels are mapped to client and counselor; volleys are split at labels inside them, empty ones dropped and consecutive ones of
    one role merged with a line break; each is noted, and so is a dialog of one side alone. A label outside `ROLES`, a volley that
    is not text, or a dialog without any is refused.
    """
    turns: list[Turn] = []
    for label, text, where in volleys:
        speaker, cleaned = role_of(label), text
        require(speaker is not None, where, f"the speaker {label!r}", f"one of {', '.join(ROLES)}")
        require(isinstance(text, str), where, f"a {type(text).__name__} as text", "a string")
        assert speaker is not None
        if "\0" in cleaned:
            repairs.note("control character removed", where)
            cleaned = cleaned.replace("\0", "")
        if any("\ud800" <= character <= "\udfff" for character in cleaned):
            repairs.note("half of a character pair replaced", where)
            cleaned = cleaned.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if "\r" in cleaned:
            repairs.note("carriage return removed", where)
            cleaned = cleaned.replace("\r\n", "\n").replace("\r", "\n")
        cleaned = cleaned.strip()
        volleys_inside = split_volley(speaker, cleaned)
        if volleys_inside is None:
            repairs.note("dialog left out: label inside a volley, unclear who speaks", where)
            return
        if volleys_inside != [(speaker, cleaned)]:
            repairs.note("label inside a volley: split or removed", where)
        for role, spoken in volleys_inside:
            if not spoken:
                repairs.note("empty turn dropped", where)
            elif turns and turns[-1].role == role:
                repairs.note("turns of one role merged", where)
                turns[-1] = Turn(role=role, text=f"{turns[-1].text}\n{spoken}")
            else:
                turns.append(Turn(role=role, text=spoken))
    require(bool(turns), name, "no turn with text", "a dialog")
    dialog = Dialog(id=name, source=source, turns=tuple(turns), meta=meta)
    if dialog.one_sided:
        repairs.note("one side alone speaks", name)
    yield dialog
