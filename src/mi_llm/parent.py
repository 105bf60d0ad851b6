"""On Linux, a stage that a run started ends with the run: a killed run must not go on writing while the next one works."""

import ctypes
import os
import signal
import sys

RUN = "MI_LLM_RUN"  # names the process of the run to its stages
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_run() -> None:
    """Have the kernel end this stage when its parent ends, and end here if the run has ended before: it is no ancestor then."""
    if sys.platform != "linux" or "DVC_STAGE" not in os.environ:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    import psutil

    run = os.environ.get(RUN)
    if run and int(run) not in [process.pid for process in psutil.Process().parents()]:
        sys.exit("mi-llm: the run that started this stage has ended")
