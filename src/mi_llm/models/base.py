"""Stage `base@model`: put one base model's checkpoint in place.

Reads the checkpoint in the model's folder, or for models of the hub its pins in the study's `pins.yaml` and its files (see
`hub.py`). Writes `base/<model>/checkpoint/` with a config, weights and tokenizer that plain transformers classes load, without
remote code, and `metrics.json`; where there is one, the license's text, and for a model of the hub in `source.json` where each
file came from. `generation_config.json` names the stop tokens of the study's chat format, whatever the model came with; a model
that is asked in its own format has its chat template in `chat_template.jinja`, with thinking off.
"""

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from mi_llm import storage
from mi_llm.engine import estimate
from mi_llm.engine.load import chat_format, checkpoint, config_of, load_tokenizer
from mi_llm.engine.own_format import GENERATION, OwnFormat, stops_named
from mi_llm.engine.template import MARK, ChatFormat
from mi_llm.models import hub
from mi_llm.models.licenses import license_of
from mi_llm.problem import Problem
from mi_llm.stage import stage
from mi_llm.study import PINS, Study

TOKENIZER = ["tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"]
TEMPLATE = "chat_template.jinja"
INDEX = "model.safetensors.index.json"
AGAIN = "run the stage again; if the files came from your own folder, copy them again"


def base(study: Study, model: str) -> None:
    """Put the checkpoint in place; see the module."""
    if study.models[model].hub:
        from_hub(study, model)
    else:
        from_folder(study, model)


def from_folder(study: Study, model: str) -> None:
    """Copy a checkpoint that lies in a folder; its weights are checked by their headers and never loaded."""
    source = study.source(model)
    license_of(study, model)  # a key that is not understood is said now, not after hours
    with stage(study, "base", model, [source]) as out:
        names = files_of(source)
        form = chat_format(study, model, source)
        vocabulary = check_tokenizer(source, form)
        target = checkpoint(study, model)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for name in names:
            with storage.replacing(target / name) as copy, (source / name).open("rb") as file:
                shutil.copyfileobj(file, copy, 1 << 22)
        settle(target, form)
        keep_license(source, license_file(path.name for path in source.iterdir()), out)
        storage.write_json(out / "metrics.json", {"parameters": check_weights(target), "vocabulary": vocabulary})


def files_of(folder: Path) -> list[str]:
    """The files of a checkpoint that the study takes from a folder, with all its weight files.

    Not the chat template: `settle` writes the one that is used, as it is used. Raises Problem for files that are missing.
    """
    weights = weight_files(folder)
    needed = ["config.json", "tokenizer_config.json", *weights]
    tokenizer = [name for name in TOKENIZER if (folder / name).is_file()]
    missing = [name for name in needed if not (folder / name).is_file()] + ([] if tokenizer else TOKENIZER[:1])
    if missing:
        expected = f"a checkpoint: config.json, {GENERATION}, {', '.join(weights)}, {TOKENIZER[0]}, tokenizer_config.json"
        raise Problem(str(folder), f"no {', no '.join(missing)}", expected, "add what is missing")
    return [*needed, *tokenizer, *(name for name in (GENERATION, INDEX) if (folder / name).is_file())]


def weight_files(folder: Path) -> list[str]:
    """The weight files of a checkpoint: those that its index names, or the one there is without an index.

    Raises Problem for an index that is none, or that names files outside the folder.
    """
    index = folder / INDEX
    if not index.is_file():
        return ["model.safetensors"]
    content = storage.read_json(index)
    named = content.get("weight_map") if isinstance(content, dict) else None
    names = sorted({str(name) for name in named.values()}) if isinstance(named, dict) else []
    if not names or any(not re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names):
        found = f"names {', '.join(map(repr, names[:3]))}" if names else "no weight_map"
        raise Problem(str(index), found, "weight_map: the name of a safetensors file in this folder for each weight", AGAIN)
    return names


def from_hub(study: Study, model: str) -> None:
    """Obtain a pinned model, convert it if its layout needs it, check what came out, and only then forget the download."""
    from mi_llm.models.convert import convert, convertible  # no other stage that loads a model needs what it imports

    with stage(study, "base", model, []) as out:
        entry = hub.entry_of(study, model)
        hub.check_room(study, model, entry)
        hub.accept_license(study, model, entry)

        def check_native(folder: Path) -> None:
            if not convertible(folder):
                check_config(folder, entry)

        obtained = hub.obtain(study, model, entry, check_native)
        target = checkpoint(study, model)
        shutil.rmtree(target, ignore_errors=True)
        record: dict[str, Any] = {
            "repository": entry.repository,
            "revision": entry.revision,
            "citation": entry.citation,
            "sha256": obtained.sha256,
        }
        if obtained.unverified:
            record["unverified"] = list(obtained.unverified)
        if convertible(obtained.folder):
            convert(obtained.folder, target)
        else:
            target.mkdir()
            for name in obtained.sha256:
                put(obtained.folder / name, target / name)
        check_config(target, entry)
        keep_license(obtained.folder, entry.license_file, out)
        parameters = check_weights(target)
        if parameters != entry.parameters:
            raise Problem(str(target), f"{parameters} parameters", f"{entry.parameters} for {model}", AGAIN)
        vocabulary = check_tokenizer(target, chat_format(study, model))
        if changed := settle(target, chat_format(study, model)):
            record["changed"] = changed
        storage.write_json(out / "source.json", record)
        numbers = {"parameters": parameters, "vocabulary": vocabulary, "revision": entry.revision}
        storage.write_json(out / "metrics.json", numbers)
    hub.discard(study, model)


def license_file(names: Iterable[str]) -> str:
    """The file with a license's text among the names of a model's files; empty if there is none."""
    return next((name for name in sorted(names) if re.search(r"licen[cs]e", name, re.IGNORECASE)), "")


def keep_license(folder: Path, name: str, out: Path) -> None:
    """Keep the license's text beside the checkpoint, if the model came with one: it goes along with an adapter."""
    shutil.rmtree(out / "LICENCE", ignore_errors=True)
    if name:
        put(folder / name, out / "LICENCE" / name)


def put(source: Path, target: Path) -> None:
    """Hard-link a file to `target`; where file systems do not allow that, copy it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        with storage.replacing(target) as copy, source.open("rb") as file:
            shutil.copyfileobj(file, copy, 1 << 22)


def header(path: Path) -> dict[str, list[int]]:
    """The shapes of the weights in a safetensors file, by name, without reading the weights.

    `safe_open` checks the header, the size of each weight against its shape, and that the weights fill the file exactly; raises
    `Problem` for a file that fails it, or that has no weight.
    """
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.offset_keys()}
    except (OSError, SafetensorError) as error:
        raise Problem(str(path), f"cannot be read ({error})", "a whole safetensors file", AGAIN) from error
    if not shapes:
        raise Problem(str(path), "no weights", "a whole safetensors file", AGAIN)
    return shapes


def check_config(folder: Path, entry: hub.Entry) -> None:
    """Compare a checkpoint's configuration with what its pins say of it; no weight shows a wrong rotary base."""
    config, original = config_of(folder), entry.original
    actual, stated = estimate.shape_of(config).model_dump(), entry.shape.model_dump()
    if original:
        rope = config.rope_parameters
        rotary = {
            "rope_type": rope["rope_type"],
            "rope_theta": rope["rope_theta"],
            "partial_rotary_factor": rope.get("partial_rotary_factor", 1.0),
            "rms_norm_eps": config.rms_norm_eps,
        }
        actual = rotary | actual
        stated = {"rope_type": "default", **original.model_dump(include=set(rotary)), **stated}
    differing = [name for name, value in stated.items() if actual[name] != value]
    if not differing:
        return
    origin = original.repository if original else entry.repository
    remedy = f"correct the entry in {PINS} if {origin} says otherwise; else fetch the files again"
    if origin != entry.repository:
        remedy = (
            f"use the original repository, {origin}, whose layout this stage converts: put its name and its commit into models, "
            f"and the SHA-256 of its weight files into {PINS}, from its pages; the bundle's authors could not see them"
        )
    raise Problem(
        str(folder / "config.json"),
        ", ".join(f"{name} {actual[name]}" for name in differing),
        ", ".join(f"{name} {stated[name]}" for name in differing) + f", as {origin} has it",
        remedy,
    )


def check_weights(folder: Path) -> int:
    """Check that a checkpoint holds every weight its architecture has, without loading any; returns the number of parameters."""
    shapes: dict[str, list[int]] = {}
    for name in weight_files(folder):
        shapes.update(header(folder / name))
    model = architecture(config_of(folder))
    for name, weight in model.named_parameters():
        if shapes.get(name) != list(weight.shape):
            raise Problem(f"{folder}: {name}", f"{shapes.get(name, 'missing')}", f"a weight of {list(weight.shape)}", AGAIN)
    return int(model.num_parameters())


def architecture(config: PreTrainedConfig) -> PreTrainedModel:
    """The model that a configuration describes, on PyTorch's meta device, which has shapes and no memory."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return model


def check_tokenizer(folder: Path, form: ChatFormat) -> int:
    """Load a checkpoint's tokenizer and check that it is one of this chat format; returns the number of its tokens.

    It must know the tokens that end a reply. Where `generation_config.json` names such tokens, at least one must be the format's:
    a tokenizer may know the tokens of several formats, of which the model was taught one.
    """
    tokenizer = load_tokenizer(folder)
    known, expected = tokenizer.get_vocab(), f"the stop tokens of chat format {form.name}: {', '.join(form.stops)}"
    remedy = f"if this model was taught another chat format, correct its chat_format in models; else {AGAIN}"
    for token in form.stops:
        if token not in known:
            raise Problem(f"{folder}: tokenizer", f"no token {token}", expected, remedy)
    for mark in marks_of(form):
        if mark not in known:
            raise Problem(f"{folder}: tokenizer", f"no token {mark}", f"the marks of chat format {form.name}", remedy)
    named = stops_named(folder)
    if named and not {*named} & {*form.stop_ids(tokenizer)}:
        tokens = ", ".join(map(str, tokenizer.convert_ids_to_tokens(named)))
        raise Problem(str(folder / GENERATION), f"replies end with {tokens}", f"one of {expected}", remedy)
    return len(tokenizer)


def marks_of(form: ChatFormat) -> list[str]:
    """What a format of the paper writes around what is said: marks that must be tokens, or a model would read letters."""
    if isinstance(form, OwnFormat):  # its marks are the checkpoint's own
        return []
    text = re.sub(r"\{#.*?#\}|\{%.*?%\}", "", form.template, flags=re.DOTALL)
    return sorted({re.split(r"(?<=[>\]])", text[mark.start() - 1 :])[0] for mark in MARK.finditer(text)})


def settle(folder: Path, form: ChatFormat) -> list[str]:
    """Make a checkpoint say what this study does with it, to whatever program loads it; returns the files that changed.

    `generation_config.json` names the tokens that end a reply here. A template of its own stands in `chat_template.jinja` as it
    is used, with thinking off.
    """
    changed = [GENERATION] if name_stops(folder, form) else []
    if isinstance(form, OwnFormat) and load_tokenizer(folder).chat_template != form.source:
        storage.write_text(folder / TEMPLATE, form.source)
        changed.append(TEMPLATE)
    return changed


def name_stops(folder: Path, form: ChatFormat) -> bool:
    """Let a checkpoint's `generation_config.json` name the tokens that end a reply here; returns whether it had to change.

    vLLM and transformers' `generate` end a reply at the tokens named there; a model may have come with fewer.
    """
    path = folder / GENERATION
    stops = form.stop_ids(load_tokenizer(folder))
    if {*stops} == {*stops_named(folder)}:
        return False
    storage.write_json(path, (storage.read_json(path) if path.exists() else {}) | {"eos_token_id": stops})
    return True
