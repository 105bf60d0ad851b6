"""A folder with the root's study in it, for benchmarks that run `mi-llm`'s own commands: its parameters, some keys changed."""

import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mi_llm.corpora import cpsycound, efaqa, psy_insight, psydtcorpus, smilechat
from mi_llm.corpora.files import from_folder
from mi_llm.corpora.reading import Repairs
from mi_llm.dialog import Dialog, Round, write_dialogs, write_rounds
from mi_llm.models.hub import Entry, entry_of
from mi_llm.study import load

ROOT = Path(__file__).parent.parent
CORPORA = ROOT / "data" / "corpora"
# Not by the list of all readers, which reads tables and documents, too: a bare machine with a GPU has no packages for those.
READERS = (cpsycound, psydtcorpus, smilechat, psy_insight, efaqa)


def sample_dialogs() -> list[Dialog]:
    """The repository's Chinese sample dialogs, of all corpora."""
    folders = [(reader, CORPORA / reader.__name__.rpartition(".")[2]) for reader in READERS]
    return [dialog for reader, folder in folders for dialog in reader.read(from_folder(folder), Repairs())]


def entry_of_root(model: str) -> Entry:
    """What the root's study and its pins say of one of its models."""
    with chdir(ROOT):
        return entry_of(load(Path("params.yaml")), model)


def only(model: str) -> dict[str, Any]:
    """The keys that leave the root's study one of its models."""
    with chdir(ROOT):
        return {"models": {model: load(Path("params.yaml")).models[model].model_dump()}, "safety.models": [model]}


def write_study(folder: Path, changed: dict[str, Any], name: str = "params.yaml") -> None:
    """Write the root's parameters with some keys changed (`section.key`); a key that the root lacks is a KeyError."""
    folder.mkdir(parents=True, exist_ok=True)
    for linked in ("src", "licenses.yaml"):
        if not (folder / linked).exists():
            (folder / linked).symlink_to(ROOT / linked)
    shutil.copy(ROOT / "dvc.yaml", folder)
    if not (folder / "pins.yaml").exists():
        shutil.copy(ROOT / "pins.yaml", folder)
    yaml = YAML()
    parameters = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for key, value in changed.items():
        *sections, last = key.split(".")
        section = parameters
        for part in sections:
            section = section[part]
        if last not in section:
            raise KeyError(f"{key}, in the root's params.yaml")
        section[last] = value
    yaml.dump(parameters, folder / name)


def write_split(folder: Path, dialogs: list[Dialog], rounds: list[Round]) -> None:
    """Write training dialogs, each of them one record as `finetune.records: release` wants it, and test rounds."""
    split = folder / "runs" / "paper" / "split"
    write_dialogs(split / "train.jsonl", [dialog.model_copy(update={"meta": {"records": "dialog"}}) for dialog in dialogs])
    write_rounds(split / "test_rounds.jsonl", rounds)
