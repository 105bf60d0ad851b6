"""What every stage does around its work: check inputs, write its provenance.

`provenance.json` names the stage, the parameters that DVC tracks for it, the hashes of its inputs and the versions of
the packages used. It holds no times and no machine names, so that an equal run writes equal bytes.
"""

import platform
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from importlib.metadata import version
from operator import getitem
from pathlib import Path
from typing import Any

from mi_llm import __version__, storage
from mi_llm.problem import Problem
from mi_llm.study import ARMS, Study

TRACED = ("torch", "transformers", "peft", "tokenizers", "openai", "pandas", "sacrebleu", "rouge_score", "matplotlib", "lm_eval")


def tracked_parameters(study: Study, name: str, item: str | None) -> dict[str, Any]:
    """The parameters that `dvc.yaml` says a stage depends on: when other parameters change, the stage is not run again.

    `item`: the corpus or model, for a stage that runs once per corpus or model. A section without any setting (a corpus that has
    a reader of its own) is left out.
    """
    pipeline = storage.read_yaml(study.beside("dvc.yaml"))
    everything = study.model_dump(mode="json")
    if item:
        everything["corpora"].setdefault(item, {})  # a corpus that is acquired beside the study's has no settings
    entry = pipeline["stages"][name]
    lists = [
        keys for tracked in entry.get("do", entry).get("params", []) for file, keys in tracked.items() if file == "${params}"
    ]
    names = [re.sub(r"\$\{(key|item\.model)\}", str(item), key) for keys in lists for key in keys or everything]
    parameters = {key: reduce(getitem, key.split("."), everything) for key in names}
    return {key: value for key, value in parameters.items() if value != {}}


def input_name(path: Path) -> str:
    """An input's name: its path in the repository, or for one from outside (a mirror folder) its bare name."""
    return path.name if path.is_absolute() or ".." in path.parts else path.as_posix()


@contextmanager
def stage(study: Study, name: str, item: str | None, inputs: Sequence[Path], *, model: str | None = None) -> Iterator[Path]:
    """Run one stage: yields its output folder, `<out>/<name>/` or `<out>/<name>/<item>/`, after checking its inputs.

    `item`: the corpus or model, for a stage that runs once for each; `model`: the model of an item that is more than a model.
    """
    title = f"{name}@{item}" if item else name
    for path in inputs:
        if not path.exists():
            raise Problem(
                str(path),
                "missing",
                f"the input of {title}",
                f"run the stage before it: dvc repro {study.beside('dvc.yaml')}",
            )
    folder = study.path(name, item) if item else study.path(name)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    yield folder
    provenance = {
        "stage": title,
        "parameters": tracked_parameters(study, name, model or item),
        "inputs": {input_name(path): storage.sha256(path) for path in inputs},
        "versions": {
            "python": ".".join(platform.python_version_tuple()[:2]),
            "mi_llm": __version__,
            **{package: version(package) for package in TRACED if package in sys.modules},
        },
    }
    storage.write_json(folder / "provenance.json", provenance)
    print(f"{title}: done in {time.monotonic() - began:.1f} s, in {folder}", file=sys.stderr)


def write_arms(out: Path, rows: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Write `<arm>.jsonl` for each arm in `rows`; remove the file of an arm that only an earlier run had."""
    for arm in ARMS:
        if arm in rows:
            storage.write_lines(out / f"{arm}.jsonl", rows[arm])
        else:
            (out / f"{arm}.jsonl").unlink(missing_ok=True)
