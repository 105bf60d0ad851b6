"""PsyDTCorpus (YIRONGCHEN/PsyDTCorpus): one JSON list of `{id, normalizedTag, messages: [{role, content}]}`."""

from collections.abc import Iterable, Iterator

from mi_llm.corpora.files import File
from mi_llm.corpora.reading import Repairs, assemble, parse_entries, require
from mi_llm.dialog import Dialog
from mi_llm.language.language import Text

NAME = Text("PsyDTCorpus", "PsyDTCorpus")


def read(files: Iterable[File], repairs: Repairs) -> Iterator[Dialog]:
    """Yield the dialogs of every `.json` file; system turns hold a prompt, not speech, and are left out."""
    for file, index, where, entry in parse_entries(files, "dialog", "messages"):
        volleys = []
        for number, message in enumerate(entry["messages"], 1):
            require(isinstance(message, dict), f"{where}, message {number}", repr(message)[:40], "{role, content}")
            if message.get("role") == "system":
                repairs.note("system turn left out", f"{where}, message {number}")
            else:
                volleys.append((message.get("role"), message.get("content"), f"{where}, message {number}"))
        meta = {"file": file, "place": index + 1, "topic": entry.get("normalizedTag")}
        yield from assemble(str(entry.get("id", index)), "psydtcorpus", volleys, repairs, meta)
