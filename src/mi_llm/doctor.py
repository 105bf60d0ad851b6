"""`mi-llm doctor`: what this machine has, what is missing for which study, and how the paper's models would be fine-tuned here.

Looks at the machine, the parameters and the models' pins; writes nothing. For each model it lists the ways that fit the GPU
found (plain, checkpointing, a 4-bit base, several processes) with memory and time, both estimated; without a GPU, and only if
asked, for three common cards. A way fits if the stages that then answer with the model fit, too.
"""

import math
import os
import platform
import shutil
import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from mi_llm.disk import held
from mi_llm.engine.estimate import Card, Plan, Shape, after_tuning, duration, gib, instead, peak_of, plans
from mi_llm.engine.nvidia import Gpu, answer, gpus
from mi_llm.git import head
from mi_llm.models import hub
from mi_llm.needs import Need, listed, needs
from mi_llm.problem import Problem
from mi_llm.study import Study

BF16_SINCE = 8.0  # CUDA compute capability of the first cards with BF16 arithmetic
DRIVER_SINCE = {
    11: 450,
    12: 525,
    13: 580,
}  # CUDA's major version: its first driver on Linux (NVIDIA's table of CUDA compatibility)
LIBRARIES = 0.51e9  # bytes of main memory that a process holds when it has imported what fine-tuning needs (PyTorch 2.13, Linux)
COMMON = {"RTX 3060": 12, "RTX 4090": 24, "A100": 80}  # cards shown where there is none, with their GiB


@dataclass(frozen=True)
class Machine:
    """What was found: memory and disk in GB; None for what this machine does not have."""

    python: str
    cores: int
    memory: float
    disk: float
    gpus: tuple[Gpu, ...]
    driver: str | None
    engine: str | None
    git: str | None
    fonts: bool
    network: bool
    hub: bool
    key: bool
    mirror: str | None

    @property
    def gpu(self) -> str | None:
        """The GPUs in words."""
        return " + ".join(f"{gpu.name}, {gib(gpu.memory)}" for gpu in self.gpus) or None

    @property
    def card(self) -> Card | None:
        """The GPUs as equal cards of the smallest one's memory."""
        if not self.gpus:
            return None
        least = min(self.gpus, key=lambda gpu: gpu.memory)
        return Card(least.name, least.memory, peak_of(least.name), len(self.gpus))


def pytorch(driver: str | None) -> tuple[str, str | None]:
    """PyTorch's version, and why it cannot use the GPU with this version of NVIDIA's driver; None if it can."""
    import torch

    if torch.cuda.is_available():
        return torch.__version__, None
    if torch.version.cuda is None:
        return torch.__version__, "a build without CUDA"
    return torch.__version__, outdated(torch.version.cuda, driver) or f"no GPU that CUDA {torch.version.cuda} can use"


def outdated(cuda: str, driver: str | None) -> str | None:
    """The sentence about a driver that is too old for a version of CUDA; None if it is new enough or there is none."""
    needed = DRIVER_SINCE.get(int(cuda.partition(".")[0]), 0)
    if driver is None or int(driver.partition(".")[0]) >= needed:
        return None
    return f"CUDA {cuda} needs NVIDIA's driver {needed} or newer, and this is {driver}"


def reachable(address: str) -> bool:
    """Whether a TCP connection to a server's port opens within two seconds."""
    parts = urlsplit(address)
    try:
        with socket.create_connection((parts.hostname, parts.port or (80 if parts.scheme == "http" else 443)), timeout=2):
            return True
    except OSError:
        return False


def git_here() -> str | None:
    """Git's version; why it fails where this folder is a repository; None without it."""
    try:
        head()
    except Problem as problem:
        return problem.found
    return answer("git", "--version")


@cache
def machine() -> Machine:
    """Look at this machine."""
    with ThreadPoolExecutor() as pool:
        network, models = pool.map(reachable, ("https://github.com", hub.endpoint()))
    return Machine(
        python=platform.python_version(),
        cores=os.cpu_count() or 1,
        memory=psutil.virtual_memory().total / 1e9,
        disk=shutil.disk_usage(Path.cwd()).free / 1e9,
        gpus=gpus(),
        driver=answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        engine=answer("docker", "info", "--format", "docker {{.ServerVersion}}") or answer("podman", "--version"),
        git=git_here(),
        fonts=bool(answer("fc-list", ":lang=zh", "family")),
        network=network,
        hub=models,
        key="OPENAI_API_KEY" in os.environ,
        mirror=os.environ.get("MI_LLM_MIRROR"),
    )


def fitting(study: Study, this_machine: Machine, study_needs: Sequence[Need]) -> list[str]:
    """What keeps a study from running here, one line each: what the machine lacks, and what else is missing (`needs.py`)."""
    missing = []
    disk = study.expect.disk_gb - held(study)
    if this_machine.disk < disk:
        missing.append(f"{this_machine.disk:.1f} GB of disk are free, {disk:.1f} are needed besides what the study holds")
    if study.from_hub:
        missing += unfit(study, this_machine)
    missing += [f"{need.what}: {need.remedy}" for need in study_needs if need.missing]
    if study.llm.mode != "replay" and not this_machine.key:
        missing.append("no OPENAI_API_KEY, which recording needs")
    return missing


def main_memory(study: Study) -> dict[str, float]:
    """Bytes of main memory that fine-tuning takes on a processor, as the study sets it: by model that the hub has, estimated."""
    return {
        model: way.memory.total + LIBRARIES
        for model in study.from_hub
        if model in study.tuned
        for way in plans(hub.entry_of(study, model).shape, study.finetune, math.inf, 1)
        if as_set(way, study)
    }


def unfit(study: Study, this_machine: Machine) -> list[str]:
    """What keeps the hub's models from being fetched and fine-tuned here."""
    missing: list[str] = []
    entries = {model: hub.entry_of(study, model) for model in study.from_hub}
    card = this_machine.card
    if card is None and study.finetune.precision == "bfloat16":
        return ["no NVIDIA GPU"]
    if card is None:  # in float32 a processor trains a small one: what limits it is main memory
        return [
            f"{model} needs {gib(need)} of main memory in fine-tuning, and {this_machine.memory:.0f} GB are there"
            for model, need in main_memory(study).items()
            if need > this_machine.memory * 1e9
        ]
    if study.finetune.precision == "bfloat16" and any(gpu.capability < BF16_SINCE for gpu in this_machine.gpus):
        missing.append(f"{card.name} has no BF16 arithmetic")
    if study.finetune.four_bit and find_spec("bitsandbytes") is None:
        missing.append("no package bitsandbytes, which a 4-bit base needs: pip install -c requirements-cuda.lock bitsandbytes")
    version, trouble = pytorch(this_machine.driver)
    if trouble:
        missing.append(f"PyTorch {version}: {trouble}")
    for model, entry in entries.items():
        ways = ways_of(study, model, entry.shape, card)
        if model in study.tuned and not any(as_set(way, study) for way in ways if way.memory.total <= card.memory):
            missing.append(f"{model} does not fit with the finetune settings of {study.params}; {instead(ways)}")
        missing += too_large(study, model, entry.shape, card)
    return missing


def ways_of(study: Study, model: str, shape: Shape, card: Card) -> list[Plan]:
    """All ways to fine-tune a model here, the best first; one fits if all stages after it do."""

    def after(four_bit: bool) -> float:
        if four_bit and model in study.prefer.models:  # which merges an adapter into the base
            return math.inf
        return max((need.total for need in after_tuning(study, model, shape, four_bit).values()), default=0.0)

    return plans(shape, study.finetune, card.memory, card.count, after=after)


def too_large(study: Study, model: str, shape: Shape, card: Card) -> list[str]:
    """The stages after fine-tuning that do not fit a card as the parameters set them, with settings that would fit."""
    return [
        f"{model} does not fit in {stage}, which needs {gib(need.total)} with the settings of {study.params}; "
        f"{smaller(study, model, shape, card, stage)}"
        for stage, need in after_tuning(study, model, shape, study.finetune.four_bit).items()
        if need.total > card.memory
    ]


def smaller(study: Study, model: str, shape: Shape, card: Card, stage: str) -> str:
    """The settings nearest to the study's with which a stage fits a card: a smaller batch, or a 4-bit base, or both."""
    for four_bit in dict.fromkeys((study.finetune.four_bit, model not in study.prefer.models)):
        for batch in range(study.respond.batch, 0, -1):
            fewer = study.model_copy(update={"respond": study.respond.model_copy(update={"batch": batch})})
            need = after_tuning(fewer, model, shape, four_bit)[stage].total
            if need <= card.memory:
                words = [f"respond.batch: {batch}"] if batch < study.respond.batch else []
                words += ["finetune.four_bit: true"] if four_bit > study.finetune.four_bit else []
                return f"{' and '.join(words)} would fit, with {gib(need)}"
    return "neither a smaller respond.batch nor a 4-bit base makes it fit"


def as_set(way: Plan, study: Study) -> bool:
    """Whether a way is the one that the parameters set; they do not set the number of processes."""
    return (way.checkpointing, way.four_bit) == (study.finetune.checkpointing, study.finetune.four_bit)


def ways_on(card: Card, study: Study) -> list[str]:
    """A table of the ways to fine-tune each model that fit a card, the best first, each leaner than the one before.

    Its columns: memory of fine-tuning, most memory of the stages after it, time of fine-tuning.
    """
    options = study.finetune
    tokens = options.max_samples * options.cutoff * options.epochs
    table = []
    for model in study.from_hub:
        shape = hub.entry_of(study, model).shape
        ways = ways_of(study, model, shape, card)
        if not ways[0].fits:
            table.append(f"  {model:<20}{instead(ways)}")
        least = math.inf
        for way in ways:
            if way.fits and (way.memory.total < least or as_set(way, study)):
                least = min(least, way.memory.total)
                time = duration(way.hours(tokens, card.peak)) if card.peak else "time unknown"
                mark = "   the parameters' setting" if as_set(way, study) else ""
                table.append(f"  {model:<20}{way.name:<48}{gib(way.memory.total):>9}{gib(way.after):>10}{time:>16}{mark}")
        table += [f"  {line}" for line in too_large(study, model, shape, card)]
    return table


def tables(study: Study, this_machine: Machine) -> list[str]:
    """How the study's models would be fine-tuned on the GPUs found, or on common cards where there is none."""
    options, card = study.finetune, this_machine.card
    cards: Sequence[tuple[str, Card]]
    if card:
        cards = [(f"on {card.count} x {card.name} ({gib(card.memory)})", card)]
    else:
        cards = [(f"with a card of {size} GB ({name})", Card(name, size * 2**30, peak_of(name))) for name, size in COMMON.items()]
    scope = (
        f"all estimated: at most {options.max_samples} records of {options.cutoff} tokens, {options.epochs} epochs,"
        f" {options.batch} record{'s' if options.batch > 1 else ''} at once"
    )
    legend = (
        f"  (second size: the stages after it, with {study.respond.batch} rounds at once, prompts of {options.cutoff} tokens and"
        f" replies of {study.respond.max_new_tokens})"
    )
    return [
        line for title, shown_card in cards for line in ("", f"fine-tuning {title}; {scope}", legend, *ways_on(shown_card, study))
    ]


def mark(good: bool) -> str:
    """The sign before a row or a study."""
    return "✓" if good else "✗"


def doctor(studies: list[Study], *, estimates: bool = False) -> int:
    """Print what was found and what each study lacks; returns 0 if the first study can run.

    A row's mark says whether the machine has what the row is for. `estimates` asks for tables of common GPUs where there is none.
    """
    this_machine = machine()
    version, trouble = pytorch(this_machine.driver)
    card = this_machine.card
    cuda = f"{version}, CUDA {'no' if trouble else 'yes'}"
    disk = ", ".join(f"{study.name}: {study.expect.disk_gb:g} GB" for study in studies)
    python, roomy = sys.version_info >= (3, 11), this_machine.disk >= studies[0].expect.disk_gb
    new_enough = this_machine.driver is not None and int(this_machine.driver.partition(".")[0]) >= DRIVER_SINCE[13]
    rows = [
        (python, "Python", this_machine.python, "3.11 or newer"),
        (this_machine.cores >= 2, "CPU cores", str(this_machine.cores), "mini: 2"),
        (this_machine.memory >= 4, "memory", f"{this_machine.memory:.0f} GB", "mini: 4 GB"),
        (roomy, "free disk", f"{this_machine.disk:.0f} GB", disk),
        (card is not None, "NVIDIA GPU", this_machine.gpu or "none", "paper"),
        (new_enough, "NVIDIA driver", this_machine.driver or "none", f"paper: {DRIVER_SINCE[13]} or newer, for CUDA 13"),
        (not trouble, "PyTorch", cuda, "paper: CUDA"),
        (bool(this_machine.git), "git", this_machine.git or "none", "to compare with the committed run"),
        (bool(this_machine.engine), "container engine", this_machine.engine or "none", "paper in a container"),
        (this_machine.fonts, "Chinese fonts", "yes" if this_machine.fonts else "none", "to read the pages on this machine"),
        (this_machine.network, "network", "yes" if this_machine.network else "no", "public corpora"),
        (this_machine.hub, "hub", "yes" if this_machine.hub else "no", f"models, from {hub.endpoint()}"),
        (this_machine.key, "OPENAI_API_KEY", "set" if this_machine.key else "not set", "to record new answers"),
        (bool(this_machine.mirror), "MI_LLM_MIRROR", this_machine.mirror or "not set", "public corpora without network"),
    ]
    for has, name, value, needed in rows:
        print(f"{mark(has)} {name:<18}{value:<34}{needed}")
    status = 0
    for study in studies:
        try:
            study_needs = needs(study, this_machine)
            missing = fitting(study, this_machine, study_needs)
        except Problem as problem:  # the hub's files of a model are not known yet
            print(f"\n{mark(False)} study {study.name}: cannot say yet\n  - {problem}")
            status = 1 if study is studies[0] else status
            continue
        print(f"\n{mark(not missing)} study {study.name}: {'cannot' if missing else 'can'} run here")
        for line in missing:
            print(f"  - {line}")
        expect = study.expect
        print(f"  takes   {expect.disk_gb:g} GB of disk and {duration(expect.minutes / 60)} ({expect.measured_on})")
        if card is None and study.finetune.precision != "bfloat16":
            for model, need in main_memory(study).items():
                print(f"          and about {gib(need)} of main memory in fine-tuning {model}")
        print(f"  needs\n{listed(study, study_needs)}")
        if study.from_hub and (card or estimates):
            print("\n".join(tables(study, this_machine)))
        elif study.from_hub:
            print("  which GPUs would do, with memory and time: mi-llm doctor --gpu")
        if study is studies[0] and missing:
            status = 1
    sys.stdout.flush()
    return status
