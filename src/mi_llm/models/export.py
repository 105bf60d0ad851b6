"""An adapter as a repository of the hub: what a tuned model must carry when it leaves the study. No stage; people call it.

Reads `finetune/<model>/adapter/`, the base's checkpoint, the license's text that `base` kept, and what the license asks for
(`licenses.yaml`). Writes one folder: adapter, tokenizer, chat template, generation settings, ten prompts with the model's greedy
answers (`golden.json`), the program that compares them elsewhere (`check.py`), model card, license, notice, `SHA256SUMS`.
Nothing is uploaded.
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
from transformers import AutoTokenizer

from mi_llm import storage
from mi_llm.dialog import Round, Turn
from mi_llm.engine.counselor import LocalCounselor, chats, plans, with_adapter
from mi_llm.engine.load import chat_format, checkpoint, prepare_torch
from mi_llm.engine.own_format import GENERATION, GENERATION_MARK
from mi_llm.models.base import TEMPLATE, TOKENIZER, weight_files
from mi_llm.models.card import Source, rendered, source_of
from mi_llm.models.licenses import FILE, known
from mi_llm.problem import Problem
from mi_llm.study import UNKNOWN, Study

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
GOLDEN_TOKENS = 64  # the most of a golden answer
CURVE = Path("dvclive/plots/metrics/loss.tsv")
# Sections of the training's card that an exported one has otherwise: it names folders of the run; a license may be learned later.
NOT_CARRIED = ("How to load it", "License")


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
    check_license(study, model, source)
    check_name(name, out, source)
    tuned = study.path("finetune", model)
    adapter = tuned / "adapter"
    training = storage.read_text(adapter / "README.md")
    with new_folder(out) as part:
        for file in ADAPTER:
            copy(adapter / file, part / file)
        write_for_others(tuned / "vllm", part)
        write_chat_files(study, model, part)
        copy(tuned / CURVE, part / CURVE.name)
        write_license(study, model, source, part)
        write_golden(study, model, source, part)
        text = card(study, model, source, name=name, files=listed(part), training=training)
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
    template = GENERATION_MARK.sub("", chat_format(study, model).template)
    storage.write_text(out / TEMPLATE, template)


def write_for_others(vllm: Path, out: Path) -> None:
    """Copy the adapter as vLLM takes it, where that is another than peft's."""
    if vllm.is_dir() and any((vllm / file).read_bytes() != (out / file).read_bytes() for file in ADAPTER):
        for file in ADAPTER:
            copy(vllm / file, out / "vllm" / file)


def write_license(study: Study, model: str, source: Source, out: Path) -> None:
    """Write what the base's license asks to go along: its text, where the model came with one, and its notice."""
    kept, license = study.path("base", model, "LICENCE"), source.license
    text = source.license_file or next((file.name for file in sorted(kept.glob("*"))), "")
    if text:
        copy(kept / text, out / f"LICENSE{Path(text).suffix}")
    lines = [line for line in (license.shown, license.notice) if line]
    if not lines and not text and not source.shipped:
        lines = [f"The base model's license is the {license.name}: {license.address}"]
    if lines:
        storage.write_text(out / "NOTICE", "\n\n".join(lines) + "\n")


def write_golden(study: Study, model: str, source: Source, out: Path) -> None:
    """Write ten prompts and what the tuned model answers to them here, greedily, with the program that compares it elsewhere.

    Raises Problem if the tokenizer and the chat template in `out` do not give the study's prompts, token for token.
    """
    prepare_torch(study)
    greedy = {"decoding": "greedy", "max_new_tokens": GOLDEN_TOKENS, "adapter": "active"}
    greedily = study.model_copy(update={"respond": study.respond.model_copy(update=greedy)})
    rounds = golden_rounds()
    counselor = LocalCounselor(greedily, model, "tuned", *with_adapter(study, model))
    prompts, asked = counselor.prompts(rounds), chats(rounds, study)
    elsewhere = AutoTokenizer.from_pretrained(out, trust_remote_code=False, local_files_only=True)
    if any(elsewhere.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] != ids
           for chat, ids in zip(asked, prompts, strict=True)):  # fmt: skip
        found, expected = "its files give other prompts than the study's", "the same tokens"
        raise Problem(f"adapter of {model}", found, expected, f"mi-llm template check {model} --study {study.params} shows them")
    answers = counselor.branching(rounds).answers(plans(rounds, prompts, {}))
    replies = {index: tokens for index, tokens, _ in answers}
    base = {"name": source.name, "revision": source.revision} if source.loadable else None
    settings = {"precision": study.respond.precision, "four_bit": study.finetune.four_bit, "max_new_tokens": GOLDEN_TOKENS}
    texts = [counselor.text_of(replies[index]) for index in range(len(rounds))]
    listed_prompts = [
        {"messages": chat, "prompt": ids, "reply": replies[index], "text": texts[index]}
        for index, (chat, ids) in enumerate(zip(asked, prompts, strict=True))
    ]
    storage.write_json(out / "golden.json", {"base": base, **settings, "prompts": listed_prompts})
    program = (resources.files(__package__) / "check_adapter.py").read_text(encoding="utf-8")
    storage.write_text(out / "check.py", program)


def golden_rounds() -> list[Round]:
    """The prompts of `golden.yaml`: what client and counselor have said in turn, up to what the client says last."""
    rounds = []
    for number, volleys in enumerate(storage.read_yaml(resources.files(__package__) / "golden.yaml"), 1):
        turns = [Turn(role="counselor" if index % 2 else "client", text=text) for index, text in enumerate(volleys)]
        name = f"golden-{number}"
        rounds.append(Round(id=name, dialog=name, number=1, history=tuple(turns[:-1]), client=turns[-1].text, counselor=""))
    return rounds


def check_license(study: Study, model: str, source: Source) -> None:
    """Refuse a base whose license nobody has looked up."""
    if source.license.key == UNKNOWN:
        raise Problem(
            f"{study.params}: models.{model}.license",
            UNKNOWN,
            f"the license of the base model: one of {', '.join(known())}",
            f"read the base's license, and name it there; one that {FILE} does not have is added to that file",
        )


def check_name(name: str, out: Path, source: Source) -> None:
    """Refuse a name that the hub would not take, or that the base's license does not allow."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise Problem(
            str(out), f"“{name}” is no name of a repository", "letters, digits, - _ and ., at most 96", "rename the folder"
        ) from None
    begins = source.license.begins
    if begins and not re.match(rf"{re.escape(begins)}(?![0-9A-Za-z])", name):
        raise Problem(
            str(out),
            f"the name “{name}”",
            f"a name that begins with “{begins}”: {source.license.name} asks for it",
            f"name the folder, for instance, {begins}-mi",
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
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [Listed(file.relative_to(folder).as_posix(), file.stat().st_size, storage.sha256(file)) for file in files]


def card(study: Study, model: str, source: Source, *, name: str, files: list[Listed], training: str) -> str:
    """The repository's model card: its own head and license, and what the training's card says of data, settings and use."""
    values: dict[str, Any] = {
        "study": study, "model": model, "name": name, "source": source, "files": files, "scores": scores(study, model),
        "chat_format": study.models[model].chat_format, "vllm": any(file.name.startswith("vllm/") for file in files),
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
    carried = "".join(part for part in parts if not part.startswith(tuple(f"## {name}\n" for name in NOT_CARRIED))).strip()
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
