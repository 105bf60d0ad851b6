"""People, whose codes lie in the folder `code.human`, as the desk exports them."""

from collections.abc import Sequence
from pathlib import Path

from mi_llm.codebook.coding import Text
from mi_llm.codebook.consensus import agreed, read
from mi_llm.codebook.tables import Coding, Transcripts, read_people
from mi_llm.study import Study

NAME = Text("{count} people", "{count} 人")


def code(study: Study, stage: str, transcripts: Transcripts) -> list[Coding]:
    """What people coded of each transcript."""
    return read_people(Path(study.code.human), transcripts)


def consensus(study: Study, codings: Sequence[Coding]) -> list[Coding] | None:
    """What their coordinator settled in `consensus.csv`, if the folder has one: one coding per transcript."""
    path = Path(study.code.human) / "consensus.csv"
    return agreed(codings, read(path)) if path.exists() else None


def inputs(study: Study) -> list[Path]:
    """The folder with their codes."""
    return [Path(study.code.human)]


def remedy(study: Study, stage: str) -> str:
    """How to get their codes."""
    return f"export them from the desk into {study.code.human}"
