"""The way of a full-size model through the study without a GPU: from a stand-in hub on this machine to base and tuned replies.

A hub on 127.0.0.1 serves Baichuan2-7B-Chat at full size (15 GB, of which almost nothing lies on disk): random weights in the
published layout, a tokenizer of as many pieces. The study is the root's: its `params.yaml` with the keys of `CHANGED`, and its
entry of `pins.yaml` with the stand-in's hashes. Through `mi-llm`'s own commands:

- `base` refuses without an accepted license, then takes a yes at a terminal; the download is cut, stalls, and is killed, and goes
  on each time where it was; a flipped bit is found and the file fetched again; the published layout is converted;
- `finetune` takes three BF16 steps, is killed after the first and goes on; an uninterrupted run must give the same bytes;
- `respond` answers six rounds with base and tuned model.

    python benchmarks/full_size.py FOLDER                          # the whole way
    python benchmarks/full_size.py FOLDER --layers 2 --hidden 256  # a miniature of it, in a minute
    python benchmarks/full_size.py FOLDER --serve                  # only the hub, for HF_ENDPOINT, until it is stopped

It needs Linux, 32 GB of disk in FOLDER, which is left for you to delete, 17 GiB of memory, and half an hour on two cores with AMX
(docs/performance.md). Writes `FOLDER/results.json`, at full size `benchmarks/results/full_size.json`, too; what the commands said
is in `FOLDER/log.txt`. Ends with status 1 at the first thing that is not as it should be; a stopped run goes on where it was.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hub.server import Hub
from hub.tokenizer import tokenizer_model
from hub.weights import FILE, Weights, tensor_shapes
from results import LATEST, machine
from root_study import ROOT, entry_of_root, only, sample_dialogs, write_split, write_study
from ruamel.yaml import YAML

from mi_llm import storage
from mi_llm.dialog import Dialog
from mi_llm.engine.estimate import Shape
from mi_llm.models.hub import Entry
from mi_llm.study import ARMS

MODEL = "baichuan2-7b"
STEPS, ROUNDS = 3, 6
# The keys of the root's params.yaml that are not the root's here.
CHANGED: dict[str, Any] = {
    "threads": len(os.sched_getaffinity(0)),
    **only(MODEL),
    "finetune.instruction": "src/mi_llm/language/zh/prompts/counselor.jinja",
    "finetune.max_samples": STEPS,
    "finetune.epochs": 1,
    "finetune.accumulation": 1,  # each record takes a processor a minute and more
    "finetune.save_every": 1,
    "respond.max_new_tokens": 32,
}
FAULTS = ((0.2, "cut"), (0.4, "stall"), (0.6, "stall"), (0.8, "flip"))  # at which share of the file; at the third it is killed
SEEN_EVERY = 0.2  # seconds


class Unexpected(Exception):  # noqa: N818
    """Something did not go as it should."""


def expect(truth: object, what: str) -> None:
    """Stop if something is not as it should be, else say that it is."""
    if not truth:
        raise Unexpected(what)
    print(f"  {what}", flush=True)


# ---- what is served, and the study that asks for it


def scaled(shape: Shape, layers: int, hidden: int) -> Shape:
    """The shape with fewer layers and narrower ones; heads keep their size."""
    narrower = {key: getattr(shape, key) * hidden // shape.hidden for key in ("heads", "key_value_heads", "intermediate")}
    return shape.model_copy(update={"layers": layers, "hidden": hidden, **narrower})


def write_repository(folder: Path, shape: Shape, license_file: str, dialogs: list[Dialog]) -> None:
    """Write the published files beside the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["BaichuanForCausalLM"],
        "model_type": "baichuan",
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "vocab_size": shape.vocabulary,
        "rms_norm_eps": 1e-06,
        "model_max_length": 4096,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
        "z_loss_weight": 0,
    }
    sampling = {"do_sample": True, "temperature": 0.3, "top_k": 5, "top_p": 0.85, "repetition_penalty": 1.05}
    marks = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "user_token_id": 195, "assistant_token_id": 196}
    tokenizer = {"tokenizer_class": "BaichuanTokenizer", "add_bos_token": False, "add_eos_token": False, "model_max_length": 4096}
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    storage.write_json(folder / "config.json", config)
    storage.write_json(folder / "generation_config.json", sampling | {"max_new_tokens": 2048} | marks)
    storage.write_json(folder / "tokenizer_config.json", tokenizer)
    storage.write_json(folder / "special_tokens_map.json", roles)
    storage.write_text(folder / license_file, "A stand-in's license: there is nothing to license.\n")
    (folder / "tokenizer.model").write_bytes(tokenizer_model(dialogs, shape.vocabulary))


def write_pins(path: Path, entry: Entry, weights: Weights) -> None:
    """Write the root's entry of `pins.yaml` with the stand-in's hash, and for another size with its numbers."""
    commit = f"{entry.repository}@{entry.revision}"
    pins = YAML(typ="safe").load((ROOT / "pins.yaml").read_text(encoding="utf-8"))[commit]
    pins["files"][FILE] = {"sha256": weights.sha256()}
    pins["shape"], pins["parameters"] = entry.shape.model_dump(), entry.shape.parameters
    YAML().dump({commit: pins}, path)


# ---- the commands


class Command:
    """One run of `mi-llm` on the study. When it has ended: exit status, seconds, and the most memory it held (GiB resident)."""

    def __init__(self, work: Path, *words: str, address: str = "", keyboard: int | None = None) -> None:
        self.work, self.words, self.began = work, words, time.monotonic()
        without = {name: value for name, value in os.environ.items() if not name.startswith(("MI_LLM_", "HF_"))}
        environment = {**without, "PYTHONPATH": str(ROOT / "src"), "HF_ENDPOINT": address, "NO_PROXY": "127.0.0.1"}
        self.log = work / "log.txt"
        self.before = self.log.stat().st_size if self.log.exists() else 0
        print(f"mi-llm {' '.join(words)}", flush=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mi_llm", *words, "--study", "params.yaml"],
                cwd=work / "study",
                env=environment,
                stdin=subprocess.DEVNULL if keyboard is None else keyboard,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.status: int | None = None
        self.seconds = self.peak = 0.0
        self.disk = 0

    @property
    def said(self) -> str:
        """What it has said so far."""
        return self.log.read_bytes()[self.before :].decode("utf-8", "replace")

    def running(self) -> bool:
        """Whether it is still at work; measures the disk on the way."""
        self.disk = max(self.disk, disk_used(self.work))
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so."""
        while not condition():
            if not self.running():
                raise Unexpected(f"mi-llm {' '.join(self.words)} ended too early:\n{self.said[-2000:]}")
            time.sleep(SEEN_EVERY)

    def kill(self) -> None:
        """End it with SIGKILL."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> "Command":
        """Wait until it has ended."""
        while self.running():
            time.sleep(SEEN_EVERY)
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = self.status = os.waitstatus_to_exitcode(status)
        self.seconds, self.peak = round(time.monotonic() - self.began, 1), gib(usage)
        return self

    def succeed(self) -> "Command":
        """Wait until it has ended well."""
        self.wait()
        if self.status:
            raise Unexpected(f"mi-llm {' '.join(self.words)} ended with status {self.status}:\n{self.said[-2000:]}")
        print(f"  {self.seconds} s, at most {self.peak} GiB", flush=True)
        return self


def gib(usage: resource.struct_rusage) -> float:
    """The most memory that a process had resident."""
    return round(usage.ru_maxrss / 2**20, 2)


def disk_used(folder: Path) -> int:
    """Bytes that the files of a folder take on the disk; one with several names counts once."""
    blocks = {}
    for directory, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.lstat(f"{directory}/{name}")
            except FileNotFoundError:  # renamed or removed a moment ago
                continue
            blocks[status.st_ino] = status.st_blocks * 512
    return sum(blocks.values())


@contextmanager
def serving(work: Path, shape: Shape) -> Iterator[str]:
    """The hub in a process of its own; gives its address."""
    command = [sys.executable, __file__, str(work), "--serve", "--layers", str(shape.layers), "--hidden", str(shape.hidden)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield running.stdout.readline().strip()
        finally:
            running.kill()


def ask(address: str, content: Any = None) -> Any:
    """Ask the hub what has happened, or with a content tell it what is to happen."""
    body = None if content is None else json.dumps(content).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(address, body)) as response:  # noqa: S310
        return json.load(response)


# ---- the way


def fetch(work: Path, address: str, weights: Weights, entry: Entry) -> dict[str, Any]:
    """Stage `base`: license, cut, stall, kill, flipped bit, conversion."""

    def transfers() -> list[dict[str, Any]]:
        return [request for request in ask(f"{address}/asked") if request["name"] == FILE]

    folder = work / "study" / "runs" / "paper" / "base"
    shutil.rmtree(folder, ignore_errors=True)
    refused = Command(work, "base", MODEL, address=address).wait()
    expect(
        refused.status == 2 and "not accepted" in refused.said, "refused: the license is not accepted, and nobody is there to ask"
    )
    expect(not ask(f"{address}/asked"), "nothing was fetched before")
    ask(f"{address}/faults", [(int(share * weights.size), fault) for share, fault in FAULTS])
    keyboard, terminal = os.openpty()
    os.write(keyboard, b"yes\n")
    killed = Command(work, "base", MODEL, address=address, keyboard=terminal)
    killed.until(lambda: len(ask(f"{address}/faults")) == 1)
    killed.kill()
    os.close(keyboard)
    os.close(terminal)
    expect(entry.license.name in killed.said, "shown: the license, accepted by a yes at a terminal")
    starts = [request["start"] for request in transfers()]
    expect(len(starts) == 3 and starts[0] == 0 and starts[1] < starts[2], "cut, then stalled: went on by itself where it was")
    (part,) = (work / "study").rglob(f".{FILE}.*.part")
    kept = part.stat().st_size
    expect(starts[2] < kept < weights.size, f"killed with {kept / 1e9:.2f} GB fetched")
    done = Command(work, "base", MODEL, address=address).succeed()
    starts = [request["start"] for request in transfers()]
    expect(starts[3] == kept, "the next run went on where the killed one was")
    expect(starts[4:] == [0] and "fetching it again" in done.said, "a flipped bit was found, and the file fetched again")
    expect(not (folder / f".{MODEL}.download").exists(), "what was downloaded is gone")
    conversion = storage.read_json(folder / MODEL / "checkpoint" / "conversion.json")
    tensors = conversion["tensors"]
    expect(tensors["read"] == len(tensor_shapes(entry.shape)), f"converted: {tensors['read']} tensors to {tensors['written']}")
    expect(conversion["tokenizer"]["entries"] == entry.shape.vocabulary, f"tokenizer: {entry.shape.vocabulary:,} entries")
    converted = (folder / MODEL / "checkpoint" / "conversion.json").stat().st_mtime - transfers()[-1]["ended"]
    return {
        "seconds": done.seconds,
        "seconds_to_verify_and_convert": round(converted, 1),
        "memory_gib": done.peak,
        "disk_gb": round(max(killed.disk, done.disk) / 1e9, 2),
        "checkpoint_gb": round(disk_used(folder / MODEL) / 1e9, 2),
        "tensors_read": tensors["read"],
        "tensors_written": tensors["written"],
    }


def tune(work: Path) -> dict[str, Any]:
    """Stage `finetune`: killed after its first step, finished, and once more without a break; both must give the same bytes."""
    folder = work / "study" / "runs" / "paper" / "finetune"
    shutil.rmtree(folder, ignore_errors=True)
    killed = Command(work, "finetune", MODEL)
    killed.until((folder / f".{MODEL}.resume" / "state.pt").exists)
    killed.kill()
    expect(killed.status == -signal.SIGKILL and not (folder / MODEL / "adapter").exists(), "killed after the first save")
    resumed = Command(work, "finetune", MODEL).succeed()
    first = storage.md5s(folder / MODEL)
    whole = Command(work, "finetune", MODEL).succeed()
    expect(storage.md5s(folder / MODEL) == first, f"{len(first)} files of the resumed and the uninterrupted run have equal bytes")
    numbers = storage.read_json(folder / MODEL / "metrics.json")
    expect(numbers["steps"] == numbers["records"] == STEPS, f"{STEPS} steps of a record each")
    pace = list(storage.read_lines(folder.parent / ".speed" / f"finetune-{MODEL}.jsonl"))[-1]
    return {
        "seconds": whole.seconds,
        "seconds_after_the_kill": resumed.seconds,
        "tokens_per_second": pace["tokens_per_second"],
        "memory_gib": max(killed.peak, resumed.peak, whole.peak),
        "equal_bytes": True,
        "metrics": numbers,
    }


def answer(work: Path) -> dict[str, Any]:
    """Stage `respond`: six rounds with base and tuned model."""
    done = Command(work, "respond", MODEL).succeed()
    folder = work / "study" / "runs" / "paper" / "respond" / MODEL
    replies = {arm: list(storage.read_lines(folder / f"{arm}.jsonl")) for arm in ARMS}
    expect(all(len(of_arm) == ROUNDS for of_arm in replies.values()), f"{ROUNDS} rounds answered by base and tuned model")
    tokens = sum(reply["tokens"] for of_arm in replies.values() for reply in of_arm)
    different = sum(base["text"] != tuned["text"] for base, tuned in zip(*replies.values(), strict=True))
    return {
        "seconds": done.seconds,
        "memory_gib": done.peak,
        "rounds": ROUNDS,
        "tokens": tokens,
        "replies_that_tuning_changed": different,
    }


def main() -> None:
    """Go the whole way, or serve."""
    known = entry_of_root(MODEL)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--layers", type=int, default=known.shape.layers)
    parser.add_argument("--hidden", type=int, default=known.shape.hidden, help="a multiple of the 128 of one head")
    parser.add_argument("--serve", action="store_true", help="only serve, and print the address")
    options = parser.parse_args()
    entry = known.model_copy(update={"shape": scaled(known.shape, options.layers, options.hidden)})
    work, dialogs = options.folder.resolve(), sample_dialogs()
    if not (work / "hub" / "tokenizer.model").exists():
        write_repository(work / "hub", entry.shape, entry.license_file, dialogs)
    weights = Weights(work / "hub", entry.shape)
    if options.serve:
        with Hub(entry.repository, entry.revision, work / "hub", weights) as served:
            print(served.address, flush=True)
            served.serve_forever()
    write_study(work / "study", CHANGED)
    write_pins(work / "study" / "pins.yaml", entry, weights)
    rounds = [sample for dialog in dialogs[STEPS : STEPS + 2] for sample in list(dialog.rounds())[: ROUNDS // 2]]
    write_split(work / "study", dialogs[:STEPS], rounds)
    go_the_way(work, weights, entry)
    if entry == known:
        shutil.copy(work / "results.json", LATEST.with_name("full_size.json"))


def go_the_way(work: Path, weights: Weights, entry: Entry) -> None:
    """Go through the stages that have no results yet, and add those of each."""
    path, shape = work / "results.json", entry.shape
    served_gb, on_disk = round(weights.size / 1e9, 2), round(disk_used(work / "hub") / 1e9, 4)
    model = {"parameters": shape.parameters, "served_gb": served_gb, "served_gb_on_disk": on_disk, **shape.model_dump()}
    before = storage.read_json(path) if path.exists() else {}
    storage.write_json(path, before | {"machine": machine(), "model": model, "changed": CHANGED})

    def base() -> dict[str, Any]:
        with serving(work, shape) as address:
            return fetch(work, address, weights, entry)

    stages: dict[str, Callable[[], dict[str, Any]]] = {
        "base": base,
        "finetune": lambda: tune(work),
        "respond": lambda: answer(work),
    }
    for stage, go in stages.items():
        results = storage.read_json(path)
        if stage not in results:
            figures = go()
            storage.write_json(path, results | {stage: figures})
            print(json.dumps(figures, indent=1), flush=True)


if __name__ == "__main__":
    try:
        main()
    except Unexpected as problem:
        sys.exit(f"full_size.py: not so: {problem}")
