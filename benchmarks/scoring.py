"""P3: scoring replies, ours against LLaMA-Factory's metric class, on the same pairs; goal: equal to 4 decimals, and no slower.

Compared are the 367 released references with as many replies, and 50,000 pairs; all texts are counselor volleys of SmileChat of
30 to 85 characters, no text twice. Both sides run in turn, in fresh processes, and have loaded jieba's dictionary before the
clock starts; our worker processes start within it. Needs LLaMA-Factory (benchmarks/peers.sh) and the archives of the release
and of SmileChat in the folder that MI_LLM_MIRROR names.

    python benchmarks/run.py P3
    python benchmarks/scoring.py 1 2000          # a trial: one repetition, at most 2,000 pairs
    python benchmarks/scoring.py references      # writes the reference of tests/score/test_score.py
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jieba
import peers
from results import Result, Skipped, show, spread

from mi_llm.corpora import fetch, release, smilechat
from mi_llm.corpora.files import File, from_folder
from mi_llm.corpora.read import READERS
from mi_llm.corpora.reading import Repairs
from mi_llm.score.text import LLAMA_FACTORY, all_scores

ROUNDS = 3
MANY = 50_000
TYPICAL = (30, 85)  # characters of a reply
SEED = 1
REFERENCE = peers.ROOT / "tests" / "references" / "metric.json"
NAMES = dict(zip(LLAMA_FACTORY, ("bleu-4", "rouge-1", "rouge-2", "rouge-l"), strict=True))  # ours: LLaMA-Factory's
Pairs = list[tuple[str, str]]


def mirrored(corpus: str) -> Iterator[File]:
    """The files of a corpus, from its archive in the mirror folder."""
    source = fetch.sources()[corpus]
    archive = Path(os.environ.get("MI_LLM_MIRROR", ".")) / source.archive(source.commit)
    if not archive.exists():
        raise Skipped(f"no {archive.name} in the folder that MI_LLM_MIRROR names")
    return fetch.files_below(archive, list(source.paths))


def typical_replies(count: int) -> list[str]:
    """So many different counselor volleys of SmileChat of typical length."""
    dialogs = smilechat.read(mirrored("smilechat"), Repairs())
    volleys = (turn.text for dialog in dialogs for turn in dialog.turns if turn.role == "counselor")
    fewest, most = TYPICAL
    chosen: dict[str, None] = {}
    for text in volleys:
        if fewest <= len(text) <= most:
            chosen[text] = None
            if len(chosen) == count:
                break
    return random.Random(SEED).sample(list(chosen), count)


def works(most: int) -> dict[str, Pairs]:
    """The pairs that are compared: the released references, and many."""
    references = [sample.counselor for sample in release.read_rounds(mirrored("release"), Repairs())][:most]
    replies = typical_replies(len(references) + 2 * most)
    many = replies[len(references) :]
    return {
        f"{len(references)} released references": list(zip(replies, references, strict=False)),
        f"{most:,} pairs": list(zip(many[:most], many[most:], strict=True)),
    }


def ours(pairs: Pairs, processes: int | None = None) -> dict[str, Any]:
    """Score with the bundle: seconds, and the scores as LLaMA-Factory names them."""
    jieba.initialize()
    began = time.perf_counter()
    rows = all_scores([reply for reply, _ in pairs], [reference for _, reference in pairs], processes)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "scores": {theirs: [row[name] for row in rows] for name, theirs in NAMES.items()}}


def apart(side: str, pairs: Pairs) -> dict[str, Any]:
    """Score with one side, in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        asked, answer = Path(scratch) / "pairs.json", Path(scratch) / "result.json"
        asked.write_text(json.dumps(pairs, ensure_ascii=False), encoding="utf-8")
        if side == "llamafactory":
            peers.run("metric.py", asked, answer, threads=1)
        else:
            subprocess.run([sys.executable, __file__, side, asked, answer], check=True, capture_output=True)
        result: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return result


def compare(pairs: Pairs, repetitions: int) -> dict[str, Any]:
    """Run both sides in turn, a few times; compare their medians and every score."""
    sides = ("ours", "ours in one process", "llamafactory")
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for repetition in range(repetitions):
        for side in sides if repetition % 2 == 0 else reversed(sides):
            runs[side].append(apart(side, pairs))
    seconds = {side: spread([run["seconds"] for run in done]) for side, done in runs.items()}
    unequal = sum(
        our_score != their_score
        for name in NAMES.values()
        for our_score, their_score in zip(runs["ours"][0]["scores"][name], runs["llamafactory"][0]["scores"][name], strict=True)
    )
    return {
        "seconds": seconds,
        "ratio": round(seconds["llamafactory"]["median"] / seconds["ours"]["median"], 3),
        "ratio_in_one_process": round(seconds["llamafactory"]["median"] / seconds["ours in one process"]["median"], 3),
        "scores": len(pairs) * len(NAMES),
        "unequal": unequal,
        "version": runs["llamafactory"][0]["version"],
    }


def main(repetitions: int = ROUNDS, most: int = MANY) -> Result:
    """Compare all works; the ratio is that of the work where we gain least."""
    peers.python()
    compared = {name: compare(pairs, repetitions) for name, pairs in works(most).items()}
    least = min(compared, key=lambda name: compared[name]["ratio"])
    seconds = compared[least]["seconds"]
    return {
        "id": "P3",
        "work": f"BLEU-4 and ROUGE of replies; shown: {least}",
        "ours": {"seconds": seconds["ours"], "seconds_in_one_process": seconds["ours in one process"]},
        "peers": {"llamafactory": {"seconds": seconds["llamafactory"]}},
        "ratio": compared[least]["ratio"],
        "goal": "no slower, with scores equal to 4 decimals, for all",
        "met": all(comparison["ratio"] >= 1 and comparison["unequal"] == 0 for comparison in compared.values()),
        "details": compared,
    }


def reference_pairs() -> dict[str, Pairs]:
    """The pairs of the reference: of odd texts each with each, and sample dialogs with their earlier replies."""
    dialogs = list(READERS["cpsycound"](from_folder(peers.ROOT / "data" / "corpora" / "cpsycound"), Repairs()))
    replies = [turn.text for dialog in dialogs for turn in dialog.turns if turn.role == "counselor"]
    long = "".join(replies)[:5000]
    plain = "听起来你很想戒烟，又担心自己坚持不下来。你愿意说说，上一次戒烟时发生了什么吗？"
    odd = [
        plain, plain[::-1], long[:1500], "", "烟", "a", "戒烟", "想戒烟", " \n\u3000\t", "我" * 60, "戒烟戒烟戒烟很难很难很难",
        "你想戒烟。\n\n\n戒烟很难！ \n \n你说呢？\n", "\n \n戒烟", "戒烟\r\n\r\n很难\r", "戒烟\u2028很难\x85是\x1c的",
        "You want to quit smoking, but it is hard. It's hard!", "我每天抽20支cigarettes，BMI是25.5%，C++和A&B都会。", "+#&._%-",
        "加油💪🏽！戒烟👨\u200d👩\u200d👧很难😭😭", "e\u0301te\u0301 \ufeff戒\u200b烟", "ＡＢＣ１２３，ａｂｃ\u3000戒烟",
        "。！？…，、；：“”‘’（）《》——?.!", "。。。。？？？？！！", "我......想……戒烟.......你.........",
        "他说：“戒烟很难。”我说：“是的！”……", "张医生和李护士在乌鲁木齐的家里谈戒烟", "𠀀𠀁𪚥鿕鿖㐀㐁龘靐齉", "龘龘龘龘靐靐齉",
    ]  # fmt: skip
    return {
        "odd texts": [(reply, reference) for reply in odd for reference in odd],
        "5,000 characters": [(long, plain), (plain, long), (long, "烟"), (long, long[::-1])],
        "sample dialogs": list(zip(replies[1:160], replies, strict=False)),
    }


def references() -> None:
    """Write the reference: texts once, and for each pair of their numbers what LLaMA-Factory's metric gives."""
    pairs = [pair for some in reference_pairs().values() for pair in some]
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    numbers = {text: number for number, text in enumerate(texts)}
    result = apart("llamafactory", pairs)
    rows = zip(*(result["scores"][name] for name in NAMES.values()), strict=True)
    content = {
        "made_by": f"benchmarks/scoring.py with llamafactory {result['version']}",
        "texts": texts,
        "columns": ["reply", "reference", *NAMES],
        "scores": [[numbers[reply], numbers[reference], *row] for (reply, reference), row in zip(pairs, rows, strict=True)],
    }
    lines = json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("],[", "],\n[").replace('","', '",\n"')
    REFERENCE.write_text(lines + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["references"]:
        references()
    elif len(sys.argv) == 4:
        side, asked, answer = sys.argv[1:]
        measured = ours(json.loads(Path(asked).read_text(encoding="utf-8")), 1 if side.endswith("one process") else None)
        Path(answer).write_text(json.dumps(measured), encoding="utf-8")
    else:
        outcome = main(*map(int, sys.argv[1:]))
        show(outcome)
        for work, numbers in outcome["details"].items():
            print(
                f"  {work}: {numbers['ratio']:.2f} times as fast ({numbers['ratio_in_one_process']:.2f} in one process),",
                end=" ",
            )
            print(f"{numbers['unequal']} of {numbers['scores']} scores unequal")
