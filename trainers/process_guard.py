"""Ends a group of processes when this process is gone, however it ended: by Ctrl-C, a signal or a
crash, after which no `finally` runs in another thread. POSIX; on Windows a job object does it.
"""

import subprocess
import sys
import tempfile

# Waits for the end of a pipe that this process holds open. A byte before that end dismisses it.
_PROGRAM = """
import os, signal, sys, time
group, grace_seconds = int(sys.argv[1]), float(sys.argv[2])
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if os.read(0, 1):
    sys.exit()
for number in (signal.SIGTERM, signal.SIGKILL):
    deadline = time.monotonic() + grace_seconds
    try:
        os.killpg(group, number)
        while time.monotonic() < deadline:
            time.sleep(0.02)
            os.killpg(group, 0)
    except OSError:  # it has ended
        break
"""


class ProcessGuard:
    """Guards the group with this id until it is dismissed.

    Raises:
        OSError: the guard cannot be started.
    """

    def __init__(self, group: int, *, grace_seconds: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, str(group), str(grace_seconds)],
            cwd=tempfile.gettempdir(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal, or its end, must not end the guard
        )

    def dismiss(self) -> None:
        """Call this when the group has ended, since another may get its id."""
        self._process.communicate(b".")
