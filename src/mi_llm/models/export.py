"""An adapter as a repository of the hub: what a tuned model must carry when it leaves the study. No stage; people call it.

Reads `finetune/<model>/adapter/`, and of a model of the hub the license that `base` kept and the license's duties
(`distribute.yaml`). Writes one folder: adapter, tokenizer, chat template, generation settings, model card, license, notice,
`SHA256SUMS`. Nothing is uploaded.
"""

import csv
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from pydantic import BaseModel, ConfigDict

from mi_llm import storage
from mi_llm.engine.load import chat_format, checkpoint
from mi_llm.engine.own_format import GENERATION
from mi_llm.models import hub
from mi_llm.models.base import TEMPLATE, TOKENIZER, weight_files
from mi_llm.models.card import Source, rendered, source_of
from mi_llm.problem import Problem
from mi_llm.study import Study

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
MARKED = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
CURVE = Path("dvclive/plots/metrics/loss.tsv")
NOT_CARRIED = "How to load it"  # the section of the training's card that names folders of the run


class Duties(BaseModel):
    """What a license asks of whoever passes a tuned model on; the head of `distribute.yaml` explains the keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    identifier: str
    name: str
    begins: str
    shown: str
    notice: str


@dataclass(frozen=True)
class Listed:
    """A file of the repository: its name, its size in bytes, its SHA-256."""

    name: str
    size: int
    sha256: str


def export(study: Study, model: str, out: Path) -> None:
    """Write the adapter of one of the study's models as a hub repository, whole or not at all.

    The folder's name becomes the repository's, so the hub must take it and the base's license allow it. Raises
    `Problem` for another name, for a folder that is there already, and for what the study has not made yet.
    """
    if model not in study.tuned:
        where, expected = f"{study.params}: finetune.untuned", "a model that the study tunes"
        raise Problem(where, f"names {model}", expected, "remove it from the list")
    name, source = out.absolute().name, source_of(study, model)
    duties = duties_of(model) if source.hub else None
    check_name(name, out, duties, source)
    tuned = study.path("finetune", model)
    adapter = tuned / "adapter"
    training = storage.read_text(adapter / "README.md")
    with new_folder(out) as part:
        for file in ADAPTER:
            copy(adapter / file, part / file)
        write_chat_files(study, model, part)
        copy(tuned / CURVE, part / CURVE.name)
        if duties:
            licence = hub.entry_of(study, model).licence.file
            copy(study.path("base", model, "LICENCE", licence), part / f"LICENSE{Path(licence).suffix}")
            storage.write_text(part / "NOTICE", "\n\n".join(filter(None, [duties.shown, duties.notice])) + "\n")
        text = card(study, model, source, name=name, duties=duties, files=listed(part), training=training)
        storage.write_text(part / "README.md", text)
        sums = "".join(f"{file.sha256}  {file.name}\n" for file in listed(part))
        storage.write_text(part / "SHA256SUMS", sums)
    tell(study, out, listed(out))


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder that becomes `out` when the block is left, or leaves no trace where the block raised.

    Raises Problem if there is something at `out`, or if it cannot be written.
    """
    if out.exists():
        raise Problem(str(out), "is there already", "a folder that does not exist yet", "remove it, or name another one in --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".part"))
    except OSError as error:
        raise Problem(str(out.parent), f"{error.strerror}", "a writable folder", "name another one in --out") from None
    try:
        yield part
        part.chmod(0o755)
        part.rename(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def write_chat_files(study: Study, model: str, out: Path) -> None:
    """Write what a program needs to ask the model in its chat format: tokenizer, chat template, and what ends a reply.

    The template is the one of training, without the marks that say what the loss sees; with it, plain transformers writes the
    prompts that the adapter was trained on (`mi-llm template check`).
    """
    base = checkpoint(study, model)
    for name in ("tokenizer_config.json", *(name for name in TOKENIZER if (base / name).is_file()), GENERATION):
        copy(base / name, out / name)
    template = MARKED.sub("", chat_format(study, model).template)
    storage.write_text(out / TEMPLATE, template)


def duties_of(model: str) -> Duties:
    """What the license of a hub model asks for."""
    known = storage.read_yaml(resources.files(__package__) / "distribute.yaml")
    if model not in known:
        raise Problem(
            f"distribute.yaml: {model}",
            "no such model",
            "what its license requires of whoever distributes a model tuned from it",
            "read the license, and add an entry to src/mi_llm/models/distribute.yaml",
        )
    return Duties.model_validate(known[model])


def check_name(name: str, out: Path, duties: Duties | None, source: Source) -> None:
    """Refuse a name that the hub would not take, or that the base's license does not allow."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise Problem(
            str(out), f"“{name}” is no name of a repository", "letters, digits, - _ and ., at most 96", "rename the folder"
        ) from None
    if duties and duties.begins and not re.match(rf"{re.escape(duties.begins)}(?![0-9A-Za-z])", name):
        raise Problem(
            str(out),
            f"the name “{name}”",
            f"a name that begins with “{duties.begins}”: {source.licence} asks for it",
            f"name the folder, for instance, {duties.begins}-mi",
        )


def copy(source: Path, target: Path) -> None:
    """Copy a file that the study has made."""
    if not source.is_file():
        raise Problem(
            str(source), "no such file", "an output of the stages base and finetune", "run ./reproduce.sh, or `make pull-chat`"
        )
    with storage.replacing(target) as file, source.open("rb") as opened:
        shutil.copyfileobj(opened, file, 1 << 22)


def listed(folder: Path) -> list[Listed]:
    """The folder's files, by name."""
    return [Listed(file.name, file.stat().st_size, storage.sha256(file)) for file in sorted(folder.iterdir())]


def card(
    study: Study, model: str, source: Source, *, name: str, duties: Duties | None, files: list[Listed], training: str
) -> str:
    """The repository's model card: its own head, and what the training's card says of data, settings, use and license."""
    values: dict[str, Any] = {
        "study": study, "model": model, "name": name, "source": source, "duties": duties, "files": files,
        "chat_format": study.chat_format(model), "scores": scores(study, model),
    }  # fmt: skip
    base = checkpoint(study, model)
    weights = {} if source.hub else {name: storage.sha256(base / name) for name in weight_files(base)}
    return rendered(
        resources.files(__package__) / "hub_card.md.jinja", values | {"weights": weights, "training": sections(training)}
    )


def scores(study: Study, model: str) -> list[tuple[str, str, str, str]]:
    """What the model scored on the test rounds: set, metric, base and tuned, with intervals; nothing before stage `score`."""
    path = study.path("score", "scores.csv")
    rows = csv.DictReader(storage.read_text(path).splitlines()) if path.exists() else ()
    by_metric: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        if row["model"] == model:
            interval = f" [{float(row['lo']):.2f}, {float(row['hi']):.2f}]" if row["lo"] and row["hi"] else ""
            by_metric.setdefault((row["set"], row["metric"]), {})[row["arm"]] = f"{float(row['mean']):.2f}{interval}"
    return [(name, metric, arms["base"], arms["tuned"]) for (name, metric), arms in by_metric.items() if len(arms) > 1]


def sections(training: str) -> str:
    """The sections of the training's card that hold wherever the adapter goes."""
    parts = re.split(r"^(?=## )", training, flags=re.MULTILINE)[1:]
    carried = "".join(part for part in parts if not part.startswith(f"## {NOT_CARRIED}\n")).strip()
    return carried.replace("`dvclive/` beside this folder", f"`{CURVE.name}`")


def tell(study: Study, out: Path, files: list[Listed]) -> None:
    """Print what was written, and what to do before passing it on."""
    for file in files:
        print(f"{file.sha256}  {file.size:>12,}  {file.name}")
    print(f"written: {out}; nothing was uploaded (docs/remotes.md tells how)")
    if study.training == "corpus":
        print("note: an adapter can repeat what it was trained on; whoever owns the dialogs decides whether you may pass it on")
    elif study.training != "recorded":
        print("note: for the training dialogs their authors stated no license; ask them before you pass the adapter on")
