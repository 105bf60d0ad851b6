"""Work in processes of their own, forked off one that has imported everything: what is tested is not how long that takes."""

import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from mi_llm.cli import guarded, main

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["mi_llm.models.finetune", "mi_llm.models.respond", "mi_llm.apps.model.server"])


def run(work: Callable[[], None], environment: Mapping[str, str], output: Path) -> None:
    """Do the work as the command line would, what it prints in a file."""
    os.environ.clear()
    os.environ.update(environment)
    with output.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    guarded(work)


def command(*words: str) -> None:
    """The work of `mi-llm` with these words."""
    sys.argv = ["mi-llm", *words]
    main()


def start(
    work: Callable[[], object], environment: Mapping[str, str] | None = None, output: Path = Path(os.devnull)
) -> ForkServerProcess:
    """Start a process that does the work (a function of a module, or a `partial` of one) in the current folder."""
    process = FORKS.Process(target=run, args=(work, {**os.environ, **(environment or {})}, output))
    process.start()
    return process


def together(work: Callable[[], object], count: int) -> list[ForkServerProcess]:
    """Start processes that share the work, as on so many machines; what they print is in `said.0`, `said.1` and so on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    connection = {"WORLD_SIZE": str(count), "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(work, {**connection, "RANK": str(rank)}, Path(f"said.{rank}")) for rank in range(count)]


def ended(processes: Sequence[ForkServerProcess]) -> list[int | None]:
    """Wait for processes to end; returns how they ended."""
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]
