"""The stages of the study, one row each in `stages.csv`: what Figure 1, the report and the comparison know of a stage.

Columns: its name; its phase, a folder of `src/mi_llm`; the stages whose outputs it reads; whether its files depend on
floating-point results; what it does. They say what `dvc.yaml` says, and a test holds them to that: DVC does not let a stage
depend on `dvc.yaml` itself.
"""

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class Stage:
    """One row of `stages.csv`."""

    name: str
    phase: str
    reads: tuple[str, ...]
    floating: bool
    what: str


@cache
def stages() -> dict[str, Stage]:
    """All stages by name, in the pipeline's order."""
    lines = (resources.files(__package__) / "stages.csv").read_text(encoding="utf-8").splitlines()
    return {
        row["stage"]: Stage(row["stage"], row["phase"], tuple(row["reads"].split()), row["floating"] == "yes", row["what"])
        for row in csv.DictReader(lines)
    }


def before(name: str) -> set[str]:
    """All stages before a stage: those that it reads, and those that they read."""
    direct = stages()[name].reads
    return {*direct, *(earlier for stage in direct for earlier in before(stage))}
