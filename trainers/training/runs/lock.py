"""Whether a run is alive: its process holds a lock on the file `lock` in its folder."""

import sys
from pathlib import Path


def is_locked(path: Path) -> bool:
    """Whether another open file has the lock. It is tried for a moment; a file that cannot be
    opened is not locked.
    """
    try:
        stream = open(path, "rb+")  # noqa: SIM115 a lock needs it open
    except OSError:
        return False
    with stream:
        return not _try_to_lock(stream.fileno())


if sys.platform == "win32":
    import msvcrt

    def _try_to_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
        return True

else:
    import fcntl

    def _try_to_lock(descriptor: int) -> bool:
        """Shared, so that several readers do not see each other's."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        return True
