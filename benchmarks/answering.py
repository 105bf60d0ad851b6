"""P1: answering test rounds greedily in float32, ours against LLaMA-Factory's `do_predict` and transformers' `generate`.

Every side answers the same rounds with the same model files, stop tokens and limit, in a process of its own, and its tokens are
compared with those of one-by-one generation. Reads the authors' 367 released rounds (from the archive in MI_LLM_MIRROR) and the
bundle's tiny model; makes a random 100M-parameter Llama, which answers every third dialog (all of them take 40 minutes). Needs
LLaMA-Factory (benchmarks/peers.sh).

    python benchmarks/run.py P1
    python benchmarks/answering.py 1 4     # a trial: one repetition, 4 dialogs
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import peers
import torch
from results import Result, Skipped, peak_memory, show, spread
from training import MODELS, in_float32, random_model
from transformers import GenerationConfig

from mi_llm.corpora import fetch, release
from mi_llm.corpora.reading import Repairs
from mi_llm.dialog import Round, Turn
from mi_llm.engine.branching import Branching, branching_attention, greedy
from mi_llm.engine.counselor import plans
from mi_llm.engine.load import load
from mi_llm.engine.template import FORMATS, messages, prompt

GOALS = {"do_predict": 10.0, "generate_batched": 2.0}
REPETITIONS = 1
THREADS = 2
ROUNDS_AT_A_TIME = 128
BATCH = 16  # of `generate`, padded on the left, prompts sorted by length; the best of 8, 16, 32 and 64 here
Job = dict[str, Any]


def released() -> tuple[list[Round], str]:
    """The authors' 367 published rounds, and their instruction."""
    source = fetch.sources()["release"]
    archive = Path(os.environ.get("MI_LLM_MIRROR", ".")) / source.archive(source.commit)
    if not archive.exists():
        raise Skipped(f"no {archive.name} in the folder that MI_LLM_MIRROR names")
    files = list(fetch.files_below(archive, (release.ROUNDS,)))
    return list(release.read_rounds(files, Repairs())), release.instruction(files).strip()


def job(model: Path, rounds: Sequence[Round], instruction: str, most: int, folder: Path) -> Job:
    """Describe one piece of work for all sides."""
    records = [
        {
            "instruction": instruction,
            "input": sample.client,
            "output": sample.counselor,
            "history": [[asked.text, reply.text] for asked, reply in zip(sample.history[::2], sample.history[1::2], strict=True)],
            "system": "",
        }
        for sample in rounds
    ]
    samples = folder / f"samples-{model.name}.json"
    samples.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return {
        "model": str(model), "template": "llama3", "adapter": None, "samples": str(samples), "max_new_tokens": most, "batch": 1,
        "cutoff": 8192, "threads": THREADS,
        "precision": "float32", "rounds": [sample.model_dump() for sample in rounds], "instruction": instruction,
    }  # fmt: skip


def one_by_one(model: Any, asked: Sequence[list[int]], stops: list[int], most: int) -> Iterator[tuple[int, list[int]]]:
    """Transformers' `generate`, a prompt at a time."""
    for index in range(len(asked)):
        yield from generated(model, asked, [index], stops, most)


def batched(model: Any, asked: Sequence[list[int]], stops: list[int], most: int) -> Iterator[tuple[int, list[int]]]:
    """Transformers' `generate`, prompts of similar length together."""
    indices = sorted(range(len(asked)), key=lambda index: -len(asked[index]))
    for start in range(0, len(indices), BATCH):
        yield from generated(model, asked, indices[start : start + BATCH], stops, most)


def generated(
    model: Any, asked: Sequence[list[int]], indices: Sequence[int], stops: list[int], most: int
) -> Iterator[tuple[int, list[int]]]:
    """One call of `generate`: each place with its tokens up to the stop token."""
    width = max(len(asked[index]) for index in indices)
    ids = torch.tensor([[0] * (width - len(asked[index])) + asked[index] for index in indices])
    mask = torch.tensor([[0] * (width - len(asked[index])) + [1] * len(asked[index]) for index in indices])
    settings = GenerationConfig(do_sample=False, max_new_tokens=most, eos_token_id=stops, pad_token_id=0)
    with torch.inference_mode():
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, width:].tolist()
    for index, row in zip(indices, out, strict=True):
        yield index, row[: next((end for end, token in enumerate(row) if token in stops), len(row))]


def here(side: str, work: Job) -> dict[str, Any]:
    """One side of this environment, in this process: token ids, seconds of answering, tokens read and written, memory."""
    torch.set_num_threads(work["threads"])
    rounds = [Round.model_validate(record) for record in work["rounds"]]
    model, tokenizer = load(Path(work["model"]), work["precision"])
    form, most = FORMATS[work["template"]], work["max_new_tokens"]
    stops = form.stop_ids(tokenizer)
    chats = [
        messages([*sample.history, Turn(role="client", text=sample.client)], work["instruction"], "query") for sample in rounds
    ]
    asked = [prompt(tokenizer, form, chat) for chat in chats]
    if side == "ours":
        branching_attention(model)
    began = time.perf_counter()
    read = sum(map(len, asked))
    if side == "ours":
        branching = Branching(model, stops, ROUNDS_AT_A_TIME, most, greedy)
        replies = {index: ids for index, ids, _ in branching.answers(plans(rounds, asked, {}))}
        read = branching.prefilled
    else:
        replies = dict({"generate": one_by_one, "generate_batched": batched}[side](model, asked, stops, most))
    return {
        "seconds": time.perf_counter() - began,
        "ids": [replies[index] for index in range(len(rounds))],
        "read": read,
        "written": sum(map(len, replies.values())),
        "stops": stops,
        "memory_mb": peak_memory(),
    }


def apart(side: str, work: Job) -> dict[str, Any]:
    """One side, in a process of its own."""
    if side == "do_predict":
        return peers.exchanged(work, lambda asked, answer: peers.run("predict.py", asked, answer, threads=work["threads"]))
    return peers.exchanged(
        work,
        lambda asked, answer: subprocess.run([sys.executable, __file__, side, asked, answer], check=True, env=peers.ON_PROCESSOR),
    )


def compare(work: Job, repetitions: int) -> dict[str, Any]:
    """Run all sides in turn and compare their medians and their tokens."""
    sides = ("ours", "generate_batched", "generate", "do_predict")
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(repetitions):
        for side in sides:
            runs[side].append(apart(side, work))
    plain = runs["generate"][0]["ids"]
    seconds = {side: spread([run["seconds"] for run in done]) for side, done in runs.items()}
    return {
        "rounds": len(plain),
        "sides": {
            side: {
                "seconds": seconds[side],
                "memory_mb": spread([run["memory_mb"] for run in done]),
                "equal_to_one_by_one": sum(mine == theirs for mine, theirs in zip(done[0]["ids"], plain, strict=True)),
            }
            for side, done in runs.items()
        },
        "ratios": {side: round(seconds[side]["median"] / seconds["ours"]["median"], 2) for side in sides[1:]},
        "tokens": {
            "read_by_us": runs["ours"][0]["read"],
            "read_round_by_round": runs["generate"][0]["read"],
            "written": runs["ours"][0]["written"],
        },
        "llamafactory": runs["do_predict"][0]["version"],
    }


def equal_in_bfloat16(work: Job) -> int:
    """Rounds whose tokens are those of one-by-one generation in bfloat16 too, where sums in another order may choose another."""
    rough = work | {"precision": "bfloat16"}
    pairs = zip(apart("ours", rough)["ids"], apart("generate", rough)["ids"], strict=True)
    return sum(mine == theirs for mine, theirs in pairs)


def works(folder: Path, dialogs: int | None) -> dict[str, Job]:
    """The tiny model, whose replies end by themselves, and a random Llama of 100M parameters, whose replies do not."""
    rounds, instruction = released()
    kept = list(dict.fromkeys(sample.dialog for sample in rounds))[:dialogs]
    rounds = [sample for sample in rounds if sample.dialog in kept]
    third = [sample for sample in rounds if sample.dialog in kept[::3]]
    tiny = in_float32(MODELS / "tiny-llama3", folder / "tiny")
    large = random_model(
        "tiny-llama3", folder / "random-100m", hidden=832, intermediate=2240, layers=12, heads=13, key_value_heads=13
    )
    return {
        "tiny-llama3, at most 96 tokens a reply": job(tiny, rounds, instruction, 96, folder),
        "random 100M Llama, 64 tokens a reply, every third dialog": job(large, third, instruction, 64, folder),
    }


def main(repetitions: int = REPETITIONS, dialogs: int | None = None) -> Result:
    """Compare all works; the ratio is the least gain over `do_predict`."""
    peers.python()
    with tempfile.TemporaryDirectory() as scratch:
        jobs = works(Path(scratch), dialogs)
        compared = {name: compare(work, repetitions) for name, work in jobs.items()}
        tiny = next(iter(jobs))
        compared[tiny]["equal_in_bfloat16"] = equal_in_bfloat16(jobs[tiny])
    least = min(compared, key=lambda name: compared[name]["ratios"]["do_predict"])
    shown = compared[least]["sides"]
    reached = all(comparison["ratios"][side] >= goal for comparison in compared.values() for side, goal in GOALS.items())
    same = all(comparison["sides"]["ours"]["equal_to_one_by_one"] == comparison["rounds"] for comparison in compared.values())
    return {
        "id": "P1",
        "work": f"answering {compared[least]['rounds']} rounds in float32 on {THREADS} threads; shown: {least}",
        "ours": shown["ours"],
        "peers": {side: numbers for side, numbers in shown.items() if side != "ours"},
        "ratio": compared[least]["ratios"]["do_predict"],
        "goal": "at least 10 times as fast as do_predict and 2 times as fast as batched generate, with equal tokens",
        "met": reached and same,
        "details": compared,
    }


if __name__ == "__main__":
    if len(sys.argv) == 4:
        measured = here(sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
        Path(sys.argv[3]).write_text(json.dumps(measured), encoding="utf-8")
    else:
        outcome = main(*map(int, sys.argv[1:]))
        show(outcome)
        for work, comparison in outcome["details"].items():
            print(f"  {work}: {comparison['rounds']} rounds, {comparison['ratios']}, {comparison['tokens']}")
            if "equal_in_bfloat16" in comparison:
                print(f"   equal in bfloat16: {comparison['equal_in_bfloat16']} of {comparison['rounds']}")
        print("   equal to one by one:", {side: numbers["equal_to_one_by_one"] for side, numbers in comparison["sides"].items()})
