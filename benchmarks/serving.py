"""P8, the model server: 8 streams at once against the same requests one by one, beside `transformers serve`; then 64 chatters.

Every server is a process of its own on this machine, greedy in float32 on one thread; the client is the same for all, and shares
the cores. Chatters ask in both arms, whole and streamed, leave some replies unread, and try again when the queue is full. Reads
the bundle's tiny model; makes a random 21M-parameter Llama.

    python benchmarks/run.py P8
    python benchmarks/serving.py 1 5     # a trial: one repetition, 5 seconds of chatting
"""

import asyncio
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import peers
from prometheus_client.parser import text_string_to_metric_families
from results import Result, show, spread
from ruamel.yaml import YAML
from training import MODELS, SEED, random_model, sample_dialogs

from mi_llm.engine.load import load
from mi_llm.models.finetune import adapt
from mi_llm.study import load as load_study

GOAL, GROWTH = 2.0, 1.05  # times the tokens per second; times the memory
REPETITIONS, SECONDS = 3, 60.0
STREAMS, REQUESTS, TOKENS = 8, 24, 64
CHATTERS, ROWS, QUEUE = 64, 32, 16
THREADS = 1  # the second core is the client's, and the server's HTTP side
PAGED = ["--continuous-batching", "--cb-num-blocks", "256", "--cb-max-batch-tokens", "512"]  # by itself it takes most memory
TINY, RANDOM = "tiny-llama3", "random-21m-llama"
Said = tuple[str, int]  # a reply and how many tokens it has


def study_of(folder: Path) -> None:
    """A study in a folder, of the tiny model and the random one, with adapters as training begins with them."""
    content = YAML(typ="safe").load(peers.ROOT / "mini" / "params.yaml")
    content |= {"models": {name: {"chat_format": "llama3"} for name in (TINY, RANDOM)}, "threads": THREADS}
    content["safety"]["models"] = [TINY]
    content["respond"] |= {"batch": ROWS, "max_new_tokens": TOKENS}
    YAML(typ="safe").dump(content, folder / "params.yaml")
    study = load_study(folder / "params.yaml")
    for name in study.models:
        target = checkpoint(folder, name)
        target.parent.mkdir(parents=True)
        if name == TINY:
            target.symlink_to(MODELS / TINY)
        else:
            random_model(TINY, target, hidden=448, intermediate=1216, layers=8, heads=7, key_value_heads=7)
            (target / "chat_template.jinja").write_bytes((MODELS / TINY / "chat_template.jinja").read_bytes())
        adapt(load(target, "float32")[0], study.finetune, SEED).save_pretrained(
            folder / study.out / "finetune" / name / "adapter"
        )


def commands(folder: Path, name: str) -> dict[str, list[str]]:
    """How each server is started for a model, its port to be added."""
    ours = ["mi_llm", "serve", "--study", "params.yaml", "--models", name, "--queue", str(QUEUE), "--timeout", "600"]
    theirs = ["transformers.cli.transformers", "serve", str(checkpoint(folder, name)), "--dtype", "float32", "--device", "cpu"]
    sides = {"ours": ours, "transformers serve": theirs, "transformers serve, continuous batching": [*theirs, *PAGED]}
    return {side: [sys.executable, "-m", *command, "--port"] for side, command in sides.items()}


def checkpoint(folder: Path, name: str) -> Path:
    """Where a model lies; `transformers serve` knows it by this path."""
    return folder / "runs" / "mini" / "base" / name / "checkpoint"


@contextmanager
def started(command: Sequence[str], folder: Path) -> Iterator[str]:
    """Run a server until it is no longer needed; yields its address when it is healthy."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", folder / "server.log"
    environment = {**peers.ON_PROCESSOR, "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen([*command, str(port)], cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        while not healthy(url):
            if process.poll() is not None:
                raise RuntimeError(f"{command[3]} ended:\n{log.read_text(encoding='utf-8')[-2000:]}")
            time.sleep(0.2)
        yield url
    finally:
        process.kill()
        process.wait()


def healthy(url: str) -> bool:
    """Whether a server answers; ours also says when its models are loaded, the others load them before they listen."""
    try:
        return httpx2.get(f"{url}/ready", timeout=5).status_code in (200, 404)
    except httpx2.TransportError:
        return False


def asked(model: str, number: int, **more: Any) -> dict[str, Any]:
    """A request: the first turn of one of the bundle's dialogs."""
    turn = QUESTIONS[number % len(QUESTIONS)]
    return {"model": model, "messages": [{"role": "user", "content": turn}], "max_tokens": TOKENS, "temperature": 0} | more


QUESTIONS = [dialog.turns[0].text for dialog in sample_dialogs()]


async def streamed(client: httpx2.AsyncClient, body: dict[str, Any]) -> Said:
    """Read one reply to its end."""
    text, tokens = "", 0
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise RuntimeError(chunk["error"])
                text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
                tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    return text.strip(), tokens


async def paced(url: str, model: str, at_once: int) -> tuple[float, list[str]]:
    """Send all requests, so many at once; returns tokens per second, and the replies."""
    answers: dict[int, Said] = {}
    numbers = iter(range(REQUESTS))

    async def one_after_the_other(client: httpx2.AsyncClient) -> None:
        for number in numbers:
            answers[number] = await streamed(client, asked(model, number))

    async with httpx2.AsyncClient(base_url=url, timeout=600) as client:
        await streamed(client, asked(model, 0))  # the first is slower everywhere
        began = time.perf_counter()
        await asyncio.gather(*(one_after_the_other(client) for _ in range(at_once)))
        seconds = time.perf_counter() - began
    return sum(tokens for _, tokens in answers.values()) / seconds, [answers[number][0] for number in range(REQUESTS)]


def throughput(folder: Path, model: str, repetitions: int) -> dict[str, Any]:
    """Tokens per second of all servers with one model, one by one and with all streams, and how many replies agree with ours."""
    results: dict[str, Any] = {}
    for side, command in commands(folder, model).items():
        name = model if side == "ours" else str(checkpoint(folder, model))
        rates: dict[int, list[float]] = {1: [], STREAMS: []}
        try:
            with started(command, folder) as url:
                for _ in range(repetitions):
                    for at_once, kept in rates.items():
                        rate, replies = asyncio.run(paced(url, name, at_once))
                        kept.append(rate)
        except (RuntimeError, httpx2.HTTPError) as error:
            results[side] = {"cannot": str(error)[:500]}
            continue
        results.setdefault("replies", replies)
        results[side] = {
            "tokens_per_s_one_by_one": spread(rates[1]),
            f"tokens_per_s_{STREAMS}_streams": spread(rates[STREAMS]),
            "gain": round(statistics.median(rates[STREAMS]) / statistics.median(rates[1]), 2),
            "replies_like_ours": sum(mine == theirs for mine, theirs in zip(results["replies"], replies, strict=True)),
        }
    del results["replies"]
    return results


def numbers(url: str) -> dict[str, float]:
    """Our server's metrics."""
    page = httpx2.get(f"{url}/metrics", timeout=30).text
    return {sample.name: sample.value for family in text_string_to_metric_families(page) for sample in family.samples}


async def chatter(client: httpx2.AsyncClient, number: int, until: float, seen: Counter[str]) -> None:
    """One person: asks again and again in either arm, now and then leaves, and waits when told that the queue is full."""
    chance = random.Random(number)
    while time.monotonic() < until:
        body = asked(chance.choice((TINY, f"{TINY}+mi")), chance.randrange(1000), temperature=1, stream=chance.random() < 0.7)
        leaves = chance.random() < 0.1
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            seen["left" if leaves else str(answer.status_code)] += 1
            if answer.status_code == 429:
                await asyncio.sleep(float(answer.headers["retry-after"]) * chance.random())
            elif not leaves:
                seen["broken"] += "error" in (await answer.aread()).decode()


async def chatting(url: str, seconds: float) -> tuple[Counter[str], list[dict[str, float]]]:
    """All chatters for some time: what they were answered, and the server's metrics every half second."""
    seen, samples = Counter[str](), list[dict[str, float]]()
    async with httpx2.AsyncClient(base_url=url, timeout=120, limits=httpx2.Limits(max_connections=2 * CHATTERS)) as client:
        until = time.monotonic() + seconds
        people = [asyncio.create_task(chatter(client, number, until, seen)) for number in range(CHATTERS)]
        while time.monotonic() < until:
            samples.append(await asyncio.to_thread(numbers, url))
            await asyncio.sleep(0.5)
        await asyncio.gather(*people)
    samples.append(await asyncio.to_thread(numbers, url))
    return seen, samples


def load_of(folder: Path, seconds: float) -> dict[str, Any]:
    """What 64 chatters found: answers by status, the longest queue, memory in the second sixth of the time and in the last."""
    with started(commands(folder, TINY)["ours"], folder) as url:
        seen, samples = asyncio.run(chatting(url, seconds))
    sixth = len(samples) // 6
    memory = [sample["process_resident_memory_bytes"] / 2**20 for sample in samples]
    early, late = statistics.median(memory[sixth : 2 * sixth]), statistics.median(memory[-sixth:])
    return {
        "answers": dict(sorted(seen.items())),
        "server_errors": sum(count for status, count in seen.items() if status.startswith("5")) + seen["broken"],
        "most_waiting": max(sample["mi_llm_waiting"] for sample in samples),
        "most_open": max(sample["mi_llm_waiting"] + sample["mi_llm_running"] for sample in samples),
        "left_running": samples[-1]["mi_llm_running"] + samples[-1]["mi_llm_waiting"],
        "tokens_per_s": round(samples[-1]["mi_llm_reply_tokens_total"] / seconds, 1),
        "memory_mb": {"early": round(early, 1), "late": round(late, 1), "growth": round(late / early, 4)},
    }


def main(repetitions: int = REPETITIONS, seconds: float = SECONDS) -> Result:
    """Measure throughput with both models, then let people chat; the ratio is our least gain."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        study_of(folder)
        gains = {model: throughput(folder, model, repetitions) for model in (TINY, RANDOM)}
        chatted = load_of(folder, seconds)
    least = min(gains, key=lambda model: gains[model]["ours"]["gain"])
    bounded = chatted["most_open"] <= ROWS + QUEUE and not chatted["left_running"]
    steady = not chatted["server_errors"] and bounded and chatted["memory_mb"]["growth"] <= GROWTH
    return {
        "id": "P8",
        "work": f"{REQUESTS} chats of at most {TOKENS} tokens on {THREADS} threads, {STREAMS} at once; shown: {least}",
        "ours": gains[least]["ours"],
        "peers": {side: measured for side, measured in gains[least].items() if side != "ours"},
        "ratio": gains[least]["ours"]["gain"],
        "goal": f"at least {GOAL:g} times as fast as one by one; {CHATTERS} chatters for {seconds:g} s without a server error,"
        f" the queue bounded, memory within {GROWTH:g} times",
        "met": gains[least]["ours"]["gain"] >= GOAL and steady,
        "details": {"throughput": gains, "chatters": chatted},
    }


if __name__ == "__main__":
    outcome = main(*map(int, sys.argv[1:]))
    show(outcome)
    print(json.dumps(outcome["details"], indent=1))
