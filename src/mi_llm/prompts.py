"""The prompts are files: `prompts/<name>.jinja`, each with a header that says what it is for and where it comes from.

At the paper's scale the authors' exact rating and transcription prompts are read from their release instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError, TemplateSyntaxError

from mi_llm import storage
from mi_llm.dialog import Turn
from mi_llm.problem import Problem
from mi_llm.study import Study

FOLDER = Path("prompts")
RELEASED = {"rate": "rating.txt", "transcribe": "transcription.txt"}
LABELS = {"client": "来访者", "counselor": "咨询师"}


def render(name: str, **inputs: Any) -> str:
    """Fill in one of the bundle's prompts; see `filled_in`."""
    return filled_in(FOLDER / f"{name}.jinja", **inputs)


def filled_in(path: Path, **inputs: Any) -> str:
    """Fill in a prompt; a missing input is an error. Text from a dialog is inserted as it is, never as template code."""
    environment = Environment(loader=FileSystemLoader(path.parent), undefined=StrictUndefined)  # noqa: S701 — plain text, not HTML
    try:
        return environment.from_string(storage.read_text(path)).render(labels=LABELS, **inputs).strip()
    except TemplateError as error:
        place = f"{path}, line {error.lineno}" if isinstance(error, TemplateSyntaxError) else str(path)
        raise Problem(place, str(error), "a Jinja template with known inputs", "correct the file") from None


def instruction(study: Study) -> str:
    """The fixed instruction of every training record and test round: a Jinja template, or the authors' text as it is."""
    path = Path(study.finetune.instruction)
    text = filled_in(path) if path.suffix == ".jinja" else storage.read_text(path).strip()
    if not text:
        raise Problem(
            str(path), "empty", "the instruction", f"see {study.folder}/acquire/release/missing.csv, or name a file in prompts/"
        )
    return text


@dataclass(frozen=True)
class Prompt:
    """One of the bundle's prompts, or the authors' text, to which a dialog is added; with the name and hash of its file."""

    name: str
    path: Path
    authors: bool

    def render(self, turns: Sequence[Turn], **inputs: Any) -> str:
        """The prompt about one dialog."""
        if not self.authors:
            return render(self.name, turns=turns, **inputs)
        dialog = "\n".join(f"{LABELS[turn.role]}：{turn.text}" for turn in turns)
        return f"{storage.read_text(self.path).strip()}\n\n{dialog}".strip()

    @property
    def provenance(self) -> dict[str, str]:
        """What an answer's record says of its prompt."""
        return {"name": self.path.as_posix(), "sha256": storage.sha256(self.path)}


def bundled(name: str) -> Prompt:
    """One of the bundle's own prompts."""
    return Prompt(name, FOLDER / f"{name}.jinja", authors=False)


def load(study: Study, name: Literal["rate", "transcribe"]) -> Prompt:
    """The prompt of a stage that may use the authors'; raises Problem where it does and their appendix is not here."""
    if getattr(study, name).prompt == "bundle":
        return bundled(name)
    path = study.path("read", "release", "prompts", RELEASED[name])
    if not storage.read_text(path).strip():
        raise Problem(
            str(path), "empty: the authors' appendix is not here", "their prompt",
            f"see {study.folder}/acquire/release/missing.csv, or set {name}.prompt to bundle in {study.params}",
        )  # fmt: skip
    return Prompt(name, path, authors=True)
