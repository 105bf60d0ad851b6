"""P5: reading SmileChat from its archive, against decompressing and JSON-parsing the same archive; goal: at most 3 times as long.

Both sides run in turn, in fresh processes, so that the peak memory of each is its own. Prints medians, the ratio and memory.
Needs the archive `smile-<commit>.tar.gz` in the folder that MI_LLM_MIRROR names.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from mi_llm.corpora import fetch, smilechat
from mi_llm.corpora.reading import Repairs

GOAL = 3.0
ROUNDS = 3


def ours(archive: Path) -> int:
    """Dialogs that the product's reader makes of the archive."""
    return sum(1 for _ in smilechat.read(fetch.taken(archive, ("data",)), Repairs()))


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


def main() -> int:
    """Run both sides in turn and print the comparison; returns 1 if the goal is missed."""
    source = fetch.sources()["smilechat"]
    archive = Path(os.environ.get("MI_LLM_MIRROR", ".")) / source.archive(source.commit)
    if not archive.exists():
        print(f"P5 reading: skipped, no {archive.name} in the folder that MI_LLM_MIRROR names")
        return 0
    found = {side: [measure(side, archive) for _ in range(ROUNDS)] for side in ("parse", "ours")}
    medians = {side: statistics.median(seconds for seconds, _, _ in runs) for side, runs in found.items()}
    ratio = medians["ours"] / medians["parse"]
    for side, runs in found.items():
        memory, count = max(run[1] for run in runs), runs[0][2]
        print(f"P5 reading, {side}: {medians[side]:.1f} s (median of {ROUNDS}), {memory:.0f} MB at most, {count} dialogs")
    print(f"P5 reading: {ratio:.2f} times as long; goal: at most {GOAL:g} times")
    return int(ratio > GOAL)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        began = time.perf_counter()
        number = {"ours": ours, "parse": parse}[sys.argv[1]](Path(sys.argv[2]))
        print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, number)
    else:
        sys.exit(main())
