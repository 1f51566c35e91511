"""torchrun as PAFT starts it: `python -m paft.process.agent <torchrun's words>`.

torchrun itself ends at a signal and gives its ranks 30 seconds to follow. Here the ranks are told, save together and
end, and torchrun with them, as at the end of any training.
"""

import ctypes
import logging
import os
import signal
import sys
from contextlib import suppress
from threading import Thread

import psutil

from paft.process.interrupt import SIGNALS

PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""


def main() -> None:
    # ranks inherit the block: one hears of a signal sent before it was ready as soon as it is
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    die_with_parent()
    Thread(target=_tell_ranks, daemon=True).start()
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run.main()
    except ChildFailedError:
        raise SystemExit(1) from None  # the rank that failed has said why


def _tell_ranks() -> None:
    """They take SIGTERM however often it comes, from here and from a scheduler that signals every process."""
    while True:
        signal.sigwait(SIGNALS)
        for rank in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                rank.terminate()


def die_with_parent() -> None:
    """Have the system kill this process when its parent dies: nobody would hold the stage's lock any more."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
