"""The prompts are files: `language/<language>/prompts/<name>.jinja`, each with a header that says what it is for and its source.

Section `prompts` of the parameters names a file for each: the bundle's, one of the study's own, or, at the paper's scale, the
authors' exact text from their release.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError, TemplateSyntaxError

from mi_llm import storage
from mi_llm.language import language
from mi_llm.problem import Problem
from mi_llm.study import Study

FOLDER = Path("src/mi_llm/language")
TEMPLATE = ".jinja"


def bundled_path(code: str, name: str) -> Path:
    """The file of one of the bundle's prompts in a language."""
    return FOLDER / code / "prompts" / f"{name}.jinja"


def render(study: Study, name: str, **inputs: Any) -> str:
    """Fill in one of the bundle's prompts; see `filled_in`."""
    return filled_in(bundled_path(study.language, name), study.language, **inputs)


def filled_in(path: Path, code: str, **inputs: Any) -> str:
    """Fill in a prompt; a missing input is an error. Text from a dialog is inserted as it is, never as template code.

    `labels`: what the language of this `code` calls the speakers.
    """
    environment = Environment(loader=FileSystemLoader(path.parent), undefined=StrictUndefined)  # noqa: S701 — plain text, not HTML
    try:
        return environment.from_string(storage.read_text(path)).render(labels=language.load(code).labeled, **inputs).strip()
    except TemplateError as error:
        where = f"{path}, line {error.lineno}" if isinstance(error, TemplateSyntaxError) else str(path)
        raise Problem(where, str(error), "a Jinja template with known inputs", "correct the file") from None


def instruction(study: Study) -> str:
    """The fixed instruction of every training record and test round: a Jinja template, or the authors' text as it is."""
    path = Path(study.finetune.instruction)
    text = filled_in(path, study.language) if path.suffix == TEMPLATE else storage.read_text(path).strip()
    if not text:
        ours = bundled_path(study.language, "counselor")
        remedy = f"see {study.folder}/acquire/release/missing.csv, or name {ours} in finetune.instruction"
        raise Problem(str(path), "empty", "the instruction", remedy)
    return text


@dataclass(frozen=True)
class Prompt:
    """A file with a prompt: a Jinja template, or the authors' text, below which the dialog that it is about is put."""

    path: Path
    language: str

    def render(self, **inputs: Any) -> str:
        """The prompt with its inputs; of the authors' text, `turns` is the only one."""
        if self.path.suffix == TEMPLATE:
            return filled_in(self.path, self.language, **inputs)
        labels = language.load(self.language).labeled
        dialog = "\n".join(f"{labels[turn.role]}：{turn.text}" for turn in inputs["turns"])
        return f"{storage.read_text(self.path).strip()}\n\n{dialog}".strip()

    @property
    def provenance(self) -> dict[str, str]:
        """What an answer's record says of its prompt."""
        return {"name": self.path.as_posix(), "sha256": storage.sha256(self.path)}


def load(study: Study, name: str) -> Prompt:
    """The file that the parameters name for a prompt; raises Problem where it should have the authors' text, and has none."""
    path = Path(getattr(study.prompts, name))
    if path.suffix != TEMPLATE and not storage.read_text(path).strip():
        instead = f"set prompts.{name}: {bundled_path(study.language, name)} in {study.params}"
        remedy = f"see {study.folder}/acquire/release/missing.csv, or {instead}"
        raise Problem(str(path), "empty: the authors' appendix is not here", "their prompt", remedy)
    return Prompt(path, study.language)
