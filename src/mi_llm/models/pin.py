"""`mi-llm pin owner/name`: name a model of the hub in a study, with its commit and the sizes and hashes of its files.

Asks the hub for the list of a repository's files and fetches its `config.json`, nothing else. Writes the model's entry into the
study's parameters, and what the hub says of its files into `pins.yaml` beside them. What is fetched later must be that.
"""

import re
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap

from mi_llm import storage
from mi_llm.engine.estimate import shape_of
from mi_llm.engine.load import config_of
from mi_llm.models import hub
from mi_llm.models.base import INDEX, TEMPLATE, TOKENIZER, architecture, license_file
from mi_llm.models.convert import convertible
from mi_llm.models.licenses import known
from mi_llm.problem import Problem
from mi_llm.registry import CHECKPOINT
from mi_llm.study import PINS, UNKNOWN, Study, parse

CONFIG = ("config.json", "generation_config.json", "tokenizer_config.json", TEMPLATE)
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
HEAD = "# What the hub says of the models' files, by repository and commit; `mi-llm pin owner/name` adds an entry.\n"


def pin(study: Study, repository: str, revision: str = "", name: str = "") -> None:
    """Write the entry of a model and what the hub says of its files; an entry that is there gets the commit.

    `revision`: a commit or branch, else the newest commit. `name`: what the study calls the model, else the repository's name.
    Raises Problem, and writes nothing, for a repository that is no model in safetensors of an architecture that transformers
    has, and where the study calls another model so.
    """
    name = name or re.sub(r"[^a-z0-9_-]+", "-", repository.rpartition("/")[2].lower())
    before = study.models.get(name)
    if before and before.hub != repository:
        raise Problem(f"{study.params}: models.{name}", "another model", "a name of its own", "choose one with --name")
    with hub.online():
        described = hub.described(repository, revision or None)
        files = wanted(described.files, f"{hub.endpoint()}/{repository}")
        with tempfile.TemporaryDirectory() as fetched:
            hub.receive_verified(Path(fetched), repository, described.commit, described.files["config.json"])
            pins = pins_of(files, Path(fetched))
    key = described.license.lower()
    entry = {
        "hub": repository,
        "revision": described.commit,
        "chat_format": before.chat_format if before else CHECKPOINT,
        "license": before.license if before else key if key in known() else UNKNOWN,
    }
    params = storage.read_text(Path(study.params))
    if before is None or before.revision != described.commit:
        params = with_entry(params, name, entry, new=before is None)
    read = parse(params, Path(study.params))
    write_pins(study, read.models[name].commit, pins)
    storage.write_text(Path(study.params), params)
    tell(study, name, entry, files, described.license)


def wanted(remotes: dict[str, hub.Remote], where: str) -> list[hub.Remote]:
    """The files that the study needs of a repository: configuration, tokenizer, weights as safetensors, the license's text."""
    shards = [remote for remote in remotes if SHARD.fullmatch(remote)] if INDEX in remotes else []
    weights = [INDEX, *shards] if shards else ["model.safetensors"]
    tokenizer = [file for file in TOKENIZER if file in remotes]
    needed = ["config.json", "tokenizer_config.json", *weights, *(tokenizer or TOKENIZER[:1])]
    if missing := [file for file in needed if file not in remotes]:
        expected = "a chat model in transformers' own layout: configuration, tokenizer, weights as safetensors"
        raise Problem(where, f"no {', no '.join(missing)}", expected, "use a repository that has them")
    license_text = license_file(remotes)
    names = {*needed, *(file for file in CONFIG if file in remotes), *([license_text] if license_text else [])}
    return [remotes[file] for file in sorted(names)]


def pins_of(files: list[hub.Remote], folder: Path) -> dict[str, Any]:
    """The entry of `pins.yaml` for files of the hub; `folder` has the model's config.json."""
    if convertible(folder):
        expected = "a layout that transformers' own classes load"
        raise Problem(str(folder / "config.json"), "a layout that stage base converts", expected, "see docs/adding-a-model.md")
    config = config_of(folder)
    shape = CommentedMap(shape_of(config).model_dump(exclude_defaults=True))
    shape.fa.set_flow_style()
    pins: dict[str, Any] = {"files": {}, "parameters": architecture(config).num_parameters(), "shape": shape}
    for remote in files:
        known_hash = {"sha256": remote.sha256} if remote.sha256 else {"git": remote.blob}
        pins["files"][remote.name] = CommentedMap({"bytes": remote.size, **known_hash})
        pins["files"][remote.name].fa.set_flow_style()
    if license_text := license_file(pins["files"]):
        pins["license_file"] = license_text
    return pins


def with_entry(text: str, name: str, entry: dict[str, str], *, new: bool) -> str:
    """The parameters with a model's entry: a new one at the end of `models`, else with another commit where it stands."""
    if not new:
        content = storage.editable_yaml(text)
        content["models"][name]["revision"] = entry["revision"]
        return storage.dump_yaml(content)
    lines = text.splitlines(keepends=True)
    start = next((number for number, line in enumerate(lines, 1) if re.match(r"models:\s*(#.*)?$", line)), None)
    if start is None:
        found, shown = "models is not written with a line for each model", storage.dump_yaml({name: entry})
        raise Problem("models", found, "one entry below the other", f"add by hand:\n{shown}")
    end = next((number for number in range(start, len(lines)) if not re.match(r" +\S", lines[number])), len(lines))
    added = "".join(f"  {line}\n" for line in storage.dump_yaml({name: entry}).splitlines())
    return "".join([*lines[:end], added, *lines[end:]])


def write_pins(study: Study, commit: str, pins: dict[str, Any]) -> None:
    """Put an entry into the study's `pins.yaml`, whose comments stay."""
    file = study.beside(PINS)
    head = HEAD if not file.exists() else ""
    content = storage.editable_yaml(storage.read_text(file)) if file.exists() else {}
    content[commit] = pins
    storage.write_text(file, head + storage.dump_yaml(content))


def tell(study: Study, name: str, entry: dict[str, str], files: list[hub.Remote], stated: str) -> None:
    """Print what was written, and what to do next."""
    size = sum(remote.size for remote in files) / 1e9
    print(f"written to {study.params}, with {len(files)} files ({size:.2f} GB) in {study.beside(PINS)}:\n")
    print(storage.dump_yaml({name: entry}))
    if entry["license"] == UNKNOWN:
        print(
            f"license: the hub says {stated or 'nothing'}. Read it; then name a key of licenses.yaml, or add one. Until then the "
            "model can be used here, but no adapter of it exported."
        )
    print(f"next: mi-llm base {name} --study {study.params}, then mi-llm template check {name} --study {study.params}")
