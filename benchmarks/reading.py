"""P5: reading SmileChat from its archive, against decompressing and JSON-parsing the same archive; goal: at most 3 times as long.

Both sides run in turn, in fresh processes, so that the peak memory of each is its own. Needs the archive
`smile-<commit>.tar.gz` in the folder that MI_LLM_MIRROR names.

    python benchmarks/run.py P5
"""

import json
import os
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from results import Result, Skipped, peak_memory, spread

from mi_llm.corpora import fetch, smilechat
from mi_llm.corpora.reading import Repairs

GOAL = 3.0
ROUNDS = 3


def ours(archive: Path) -> int:
    """Dialogs that the product's reader makes of the archive."""
    return sum(1 for _ in smilechat.read(fetch.files_below(archive, ("data",)), Repairs()))


def parse(archive: Path) -> int:
    """Documents that the standard library parses from the archive."""
    count = 0
    with tarfile.open(archive, "r|gz") as members:
        for member in members:
            if member.isfile() and member.name.endswith(".json"):
                content = members.extractfile(member)
                assert content is not None
                json.loads(content.read())
                count += 1
    return count


def measure(side: str, archive: Path) -> tuple[float, float, int]:
    """Seconds, peak memory in MB and dialogs of one side, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, side, str(archive)], capture_output=True, text=True, check=True)
    seconds, memory, count = done.stdout.split()
    return float(seconds), float(memory), int(count)


def main() -> Result:
    """Run both sides in turn."""
    source = fetch.sources()["smilechat"]
    archive = Path(os.environ.get("MI_LLM_MIRROR", ".")) / source.archive(source.commit)
    if not archive.exists():
        raise Skipped(f"no {archive.name} in the folder that MI_LLM_MIRROR names")
    measurements: dict[str, list[tuple[float, float, int]]] = {"ours": [], "parse": []}
    for repetition in range(ROUNDS):
        for side in ("parse", "ours") if repetition % 2 == 0 else ("ours", "parse"):
            measurements[side].append(measure(side, archive))
    measured = {
        side: {
            "seconds": spread([seconds for seconds, _, _ in runs]),
            "memory_mb": spread([memory for _, memory, _ in runs]),
            "dialogs": runs[0][2],
        }
        for side, runs in measurements.items()
    }
    medians = {side: statistics.median(seconds for seconds, _, _ in runs) for side, runs in measurements.items()}
    ratio = medians["ours"] / medians["parse"]
    return {
        "id": "P5",
        "work": "reading SmileChat from its archive",
        "ours": measured["ours"],
        "peers": {"json.loads of every document": measured["parse"]},
        "ratio": round(ratio, 3),
        "goal": f"at most {GOAL:g} times as long as parsing alone",
        "met": ratio <= GOAL,
        "details": {},
    }


if __name__ == "__main__":
    began = time.perf_counter()
    number = {"ours": ours, "parse": parse}[sys.argv[1]](Path(sys.argv[2]))
    print(time.perf_counter() - began, peak_memory(), number)
