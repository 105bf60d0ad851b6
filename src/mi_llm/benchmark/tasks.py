"""Sets of multiple-choice questions: those of the paper's Table 1 as lm-evaluation-harness calls them, and where their files lie.

A study's `benchmark.folder` holds tasks of its own (`<task>.yaml`, in the harness's form) and the files of other tasks, in
folders named like the hub's repositories.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mi_llm.problem import Problem
from mi_llm.study import Study

INSTALL = "make harness"


@dataclass(frozen=True)
class Published:
    """A set of questions that others publish: its name in the paper's Table 1, and the hub's repository of its files."""

    name: str
    repository: str


TABLE_1 = {  # by the name of the harness's task
    "ceval-valid": Published("C-Eval", "ceval/ceval-exam"),
    "cmmlu": Published("CMMLU", "haonan-li/cmmlu"),
    "mmlu": Published("MMLU", "cais/mmlu"),
}


def missing(study: Study) -> Iterator[Problem]:
    """What the stage needs and lacks: the harness, and the files of published sets."""
    if find_spec("lm_eval") is None:
        yield Problem("benchmark.models", "no package lm-eval", "EleutherAI's lm-evaluation-harness", INSTALL)
    for task in study.benchmark.tasks:
        if task in TABLE_1:
            repository = TABLE_1[task].repository
            folder = Path(study.benchmark.folder) / repository
            if not folder.is_dir():
                remedy = f"hf download {repository} --repo-type dataset --local-dir {folder}"
                yield Problem(f"{folder}", "no such folder", f"the files of {task}", remedy)
