"""SmileChat (qiuhuachuan/smile, `data/*.json`, CC0): one JSON list of `{role, content}` per dialog."""

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from mi_llm.corpora.files import File
from mi_llm.corpora.reading import Repairs, assemble, parse_list, require
from mi_llm.dialog import Dialog
from mi_llm.language.language import Text

NAME = Text("SmileChat", "SmileChat")


def read(files: Iterable[File], repairs: Repairs) -> Iterator[Dialog]:
    """Yield one dialog per file, in the order of the files' numbers."""
    for file in files:
        if not file.name.endswith(".json"):
            continue
        turns = parse_list(file, "turns")
        volleys = []
        for index, turn in enumerate(turns):
            where = f"{file.name}, turn {index + 1}"
            require(isinstance(turn, dict), where, f"a JSON {type(turn).__name__}", "an object with role and content")
            volleys.append((turn.get("role"), turn.get("content"), where))
        yield from assemble(PurePosixPath(file.name).stem, "smilechat", volleys, repairs, {"file": file.name})
