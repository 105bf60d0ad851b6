"""The authors' release (CbyerDragon/MI-LLM, branch master): the 40 test dialogs and the 367 rounds cut from them."""

from collections.abc import Iterable, Iterator

from mi_llm.corpora.files import File
from mi_llm.corpora.reading import Repairs, assemble, parse_list, require
from mi_llm.dialog import Dialog, Round, Turn

DIALOGS = "训练集和测试集/eval_40 - 转换前.json"
ROUNDS = "训练集和测试集/eval_40.json"


def read(files: Iterable[File], repairs: Repairs) -> Iterator[Dialog]:
    """Yield the 40 test dialogs as published, whoever speaks first; `assemble` merges slips and says so."""
    for file in files:
        if file.name != DIALOGS:
            continue
        entries = parse_list(file, "dialogs")
        for place, entry in enumerate(entries, 1):
            turns = entry.get("conversations") if isinstance(entry, dict) else None
            where = f"{file.name}, dialog {place}"
            require(isinstance(turns, list), where, "no list `conversations`", "a dialog")
            volleys = [
                (turn.get("role"), turn.get("content"), f"{where}, turn {number}") for number, turn in enumerate(turns or [], 1)
            ]
            yield assemble(f"eval-{place}", "mi-llm-release", volleys, repairs, {"file": file.name, "place": place})


def pair(client: str, counselor: str) -> tuple[Turn, Turn]:
    """One round of a sample's history as two turns."""
    return Turn(role="client", text=client), Turn(role="counselor", text=counselor)


def read_rounds(files: Iterable[File], repairs: Repairs) -> Iterator[Round]:
    """Yield the 367 published test samples, positional as the authors used them: (message 2i, message 2i + 1).

    A sample with an empty history opens a new dialog. The instruction's key is `instruction`, once `""`.
    """
    for file in files:
        if file.name != ROUNDS:
            continue
        samples = parse_list(file, "samples")
        dialog = 0
        for place, sample in enumerate(samples, 1):
            where = f"{file.name}, sample {place}"
            require(isinstance(sample, dict), where, f"a JSON {type(sample).__name__}", "an object")
            if "instruction" not in sample and "" in sample:
                repairs.note('key "" read as instruction', where)
            said, reply, history = sample.get("input"), sample.get("output"), sample.get("history", [])
            require(isinstance(said, str) and isinstance(reply, str), where, "no text in input or output", "strings")
            require(
                isinstance(history, list) and all(isinstance(old, list) and len(old) == 2 for old in history),
                where, "a malformed history", "a list of pairs",
            )  # fmt: skip
            dialog += not history
            turns = [turn for said_then, replied in history for turn in pair(said_then, replied)]
            number = len(history) + 1
            yield Round(
                id=f"eval-{dialog}#{number}",
                dialog=f"eval-{dialog}",
                number=number,
                history=tuple(turns),
                client=said,
                counselor=reply,
            )
