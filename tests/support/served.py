"""A study whose models can be served, and a real `mi-llm serve` process that serves them."""

import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import httpx2
import torch
from forked import command, start
from prometheus_client.parser import text_string_to_metric_families
from repository import ROOT
from safetensors.torch import load_file, save_file
from tiny import give_adapter, study_with

from mi_llm.engine.load import chat_format, checkpoint, load
from mi_llm.study import Study

ENDLESS = "tiny-glm4"  # of this one's checkpoint we make one that never ends a reply


def study_in(folder: Path, **changes: str) -> Study:
    """The miniature in a folder, its models with adapters that change what they say."""
    for name in ("data", "src", "pretrain", "licenses.yaml"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "mini").mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        (folder / "mini" / name).write_bytes((ROOT / "mini" / name).read_bytes())
    with chdir(folder):
        study = study_with(**changes)
        for model in study.models:
            give_adapter(study, model)
    return study


def never_end(study: Study, model: str) -> None:
    """Make the tokens that end a reply as unlikely as those that the model never saw."""
    _, tokenizer = load(checkpoint(study, model), "float32")
    path = checkpoint(study, model) / "model.safetensors"
    weights = load_file(path)
    (embedding,) = (name for name in weights if name.endswith("embed_tokens.weight"))
    weights[embedding][torch.tensor(chat_format(study, model).stop_ids(tokenizer))] = 0
    save_file(weights, path, {"format": "pt"})


@dataclass
class Server:
    """A running model server: its address, its process, and the file with what it has said."""

    url: str
    process: ForkServerProcess
    log: Path

    def get(self, path: str) -> httpx2.Response:
        """GET a path."""
        return httpx2.get(self.url + path, timeout=10)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over all label sets that hold these labels."""
        families = text_string_to_metric_families(self.get("/metrics").text)
        samples = (sample for family in families for sample in family.samples if sample.name == name)
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def until(self, name: str, value: float, seconds: float = 30, **labels: str) -> None:
        """Wait until a metric has a value."""
        limit = time.monotonic() + seconds
        while self.metric(name, **labels) != value:
            assert time.monotonic() < limit, f"{name} is {self.metric(name, **labels)}, not {value}"
            time.sleep(0.02)


@contextmanager
def serving(folder: Path, *options: str, token: str = "", ready: bool = True) -> Iterator[Server]:
    """Start `mi-llm serve` in a folder with a study, and end it afterward."""
    log = folder / f"server-{time.monotonic_ns()}.log"
    work = partial(command, "serve", "--study", "mini/params.yaml", "--port", "0", *options)
    with chdir(folder):
        process = start(work, {"MI_LLM_TOKEN": token}, log)
    try:
        address = ""
        log.touch()
        while not address:
            assert process.exitcode is None, log.read_text()
            time.sleep(0.05)
            address = next((line.split()[2] for line in log.read_text().splitlines() if line.startswith("serving at ")), "")
        server = Server(address.removesuffix("/v1"), process, log)
        while ready and server.get("/ready").status_code != 200:
            assert process.exitcode is None, log.read_text()
            time.sleep(0.05)
        yield server
    finally:
        process.kill()
        process.join()
