"""Psy-Insight, Chinese part (ckqqqq/Psy-Insight, `data/cn_data_version7.json`): a list of annotated sessions."""

from collections.abc import Iterable, Iterator

from mi_llm.corpora.files import File
from mi_llm.corpora.reading import Repairs, assemble, parse_entries, require
from mi_llm.dialog import Dialog
from mi_llm.language.language import Text

NAME = Text("Psy-Insight", "Psy-Insight")


def read(files: Iterable[File], repairs: Repairs) -> Iterator[Dialog]:
    """Yield one dialog per entry; the therapist (`Supporter`) may speak first."""
    for file, index, where, entry in parse_entries(files, "session", "dialog"):
        volleys = [
            (turn.get("speaker"), turn.get("content"), f"{where}, turn {number}")
            for number, turn in enumerate(entry["dialog"], 1)
            if isinstance(turn, dict)
        ]
        require(len(volleys) == len(entry["dialog"]), where, "a turn that is not an object", "{speaker, content}")
        meta = {"file": file, "place": index + 1, "topic": entry.get("topic"), "therapy": entry.get("psychotherapy")}
        yield from assemble(f"{entry.get('dialog_id', '')}-{index}", "psy_insight", volleys, repairs, meta)
