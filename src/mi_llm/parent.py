"""On Linux, what a run or an app started ends with it: a killed run must not go on writing while the next one works."""

import ctypes
import os
import signal
import sys

RUN = "MI_LLM_RUN"  # names the process of the run to its stages, and that of the chat to the model server that it starts
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_run() -> None:
    """Have the kernel end this process when its parent ends, and end here if the run has ended before: it is no ancestor then."""
    if sys.platform != "linux" or not {"DVC_STAGE", RUN} & os.environ.keys():
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    import psutil

    run = os.environ.get(RUN)
    if run and int(run) not in [process.pid for process in psutil.Process().parents()]:
        sys.exit("mi-llm: what started this process has ended")
