"""A lock on a run that ends with the process that holds it, however that ends."""

import errno
import os
import sys
import time
from pathlib import Path
from types import TracebackType

from .file_names import LOCK

NUM_TRIES, SECONDS_BETWEEN_TRIES = 5, 0.05
_IN_USE = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)


class RunInUse(RuntimeError):
    """Another process trains this run."""


class RunLock:
    """Holds the lock of a run's folder from `acquire` to `release`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Lock the run. Where the disk knows no locks, nothing is locked.

        Raises:
            RunInUse: another process holds it.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock_patiently(descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _IN_USE:
                return
            raise RunInUse(
                f"{self._path.parent.name} is being trained by another process. Wait for its end, or start a new run "
                "(--new-run; in the graph: resume set to new)"
            ) from None
        self._descriptor = descriptor

    def release(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> "RunLock":
        self.acquire()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.release()


def is_locked(folder: Path) -> bool:
    """Tell whether a process trains this run. The lock is tried for a moment, shared with others
    who look at it.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        _lock(descriptor, shared=True)
        return False
    except OSError as error:
        return error.errno in _IN_USE
    finally:
        os.close(descriptor)


def _lock_patiently(descriptor: int) -> None:
    """Somebody may be looking whether the run is locked."""
    for _ in range(NUM_TRIES - 1):
        try:
            return _lock(descriptor)
        except OSError as error:
            if error.errno not in _IN_USE:
                raise
            time.sleep(SECONDS_BETWEEN_TRIES)
    return _lock(descriptor)


def _lock(descriptor: int, *, shared: bool = False) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
