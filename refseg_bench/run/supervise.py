"""Keeps a server running as long as anybody holds a lock, and ends it then, whatever ended the holders.

python supervise.py LOCK COMMAND…

The kernel takes the lock from whoever is killed, so nothing has to be told. A program of its own, of the
standard library alone: it outlives the worker that started it where others still need the server.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time

#: Seconds between two looks, and those that the server has to end by itself.
_LOOK, _GRACE = 0.5, 10.0
_PR_SET_PDEATHSIG = 1


def main(lock: str, *command: str) -> int:
    """Start the command; end it when the lock is free. Its exit code where it ended by itself, else 0."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_end_with_parent,
            # By which a worker finds what the server has started, should this process be killed.
            env={**os.environ, "REFSEG_SERVER": lock},
        )
    except OSError as error:
        print(f"{command[0]}: {error.strerror}")
        return 127
    try:
        with open(lock, "rb") as handle:
            while server.poll() is None:
                with contextlib.suppress(BlockingIOError):
                    # Kept until this process ends: who comes meanwhile waits for the old server's end.
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _end(server)
                    return 0
                time.sleep(_LOOK)
        return server.returncode
    finally:
        _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and what it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_GRACE)


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
