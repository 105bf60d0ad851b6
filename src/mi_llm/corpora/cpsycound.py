"""CPsyCounD (CAS-SIAT-XinHai/CPsyCoun, `CPsyCounD/Data/case_N.txt`): `来访者：…` and `心理咨询师：…` lines."""

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from mi_llm.corpora.files import File
from mi_llm.corpora.labels import LABEL, unknown_label
from mi_llm.corpora.reading import Repairs, assemble, require
from mi_llm.dialog import Dialog
from mi_llm.language.language import Text

NAME = Text("CPsyCounD", "CPsyCounD")
# Who speaks in a case beside the client or as part of the client.
PERSON = re.compile(r"(?:妈妈|爸爸|母亲|父亲|父母|女儿|儿子|孩子|丈夫|妻子|小强|月月|娜娜的母亲|天远和文姗|A|B)\s*[：:]\s*")


def read(files: Iterable[File], repairs: Repairs) -> Iterator[Dialog]:
    """Yield one dialog per `.txt` file.

    A line without a label continues the turn before it; a qualified label (`来访者（姚先生）：`) counts as its speaker, a person
    beside the client (`妈妈：`) as the client. A line that opens with any other label is refused.
    """
    for file in files:
        if not file.name.endswith(".txt"):
            continue
        text = file.text()
        if "\r" in text:
            repairs.note("carriage return removed", file.name)
        volleys: list[tuple[str, str, str]] = []
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for number, line in enumerate(map(str.strip, lines), 1):
            where = f"{file.name}, line {number}"
            if label := LABEL.match(line):
                if label["qualified"]:
                    repairs.note("qualified label taken as its speaker", where)
                if label["colon"] == ":":
                    repairs.note("half-width colon after a label", where)
                volleys.append((label["name"], line[label.end() :], where))
            elif person := PERSON.match(line):
                repairs.note("person beside the client taken as the client", where)
                volleys.append(("client", line[person.end() :], where))
            elif line:
                unknown = unknown_label(line)
                require(unknown is None, where, f"the unknown speaker {unknown!r}", "来访者： or 心理咨询师：, or speech")
                first_label = "来访者： or 心理咨询师： at the start of the first turn"
                require(bool(volleys), where, f"the line {line[:30]!r}", first_label)
                repairs.note("continuation line joined", where)
                speaker, spoken, first = volleys[-1]
                volleys[-1] = (speaker, f"{spoken}\n{line}", first)
        yield from assemble(PurePosixPath(file.name).stem, "cpsycound", volleys, repairs, {"file": file.name})
