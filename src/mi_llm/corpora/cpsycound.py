"""CPsyCounD (CAS-SIAT-XinHai/CPsyCoun, `CPsyCounD/Data/case_N.txt`): `来访者：…` and `心理咨询师：…` lines."""

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from mi_llm.corpora.files import File
from mi_llm.corpora.reading import Repairs, assemble, require
from mi_llm.dialog import Dialog

NAME = "CPsyCounD"
LABEL = re.compile(r"(来访者|心理咨询师|咨询师)(?P<qualified>（[^）]*）|\d+)?\s*(?P<colon>[：:])\s*")


def read(files: Iterable[File], repairs: Repairs) -> Iterator[Dialog]:
    """Yield one dialog per `.txt` file.

    A line without a label continues the turn before it; a qualified label (`来访者（姚先生）：`) counts as its speaker.
    """
    for file in files:
        if not file.name.endswith(".txt"):
            continue
        text = file.text()
        if "\r" in text:
            repairs.note("carriage return removed", file.name)
        volleys: list[tuple[str, str, str]] = []
        for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
            where = f"{file.name}, line {number}"
            label = LABEL.match(line.lstrip())
            if label:
                if label["qualified"]:
                    repairs.note("qualified label taken as its speaker", where)
                if label["colon"] == ":":
                    repairs.note("half-width colon after a label", where)
                volleys.append((label[1], line.lstrip()[label.end() :], where))
            elif line.strip():
                require(
                    bool(volleys),
                    where,
                    f"the line {line.strip()[:30]!r}",
                    "来访者： or 心理咨询师： at the start of the first turn",
                )
                repairs.note("continuation line joined", where)
                speaker, spoken, first = volleys[-1]
                volleys[-1] = (speaker, f"{spoken}\n{line.strip()}", first)
        yield assemble(PurePosixPath(file.name).stem, "cpsycound", volleys, repairs, {"file": file.name})
