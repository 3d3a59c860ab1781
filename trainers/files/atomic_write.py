"""Writing a file so that its final name only ever holds the whole of it."""

import errno
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Seconds between tries while another program holds a file.
WINDOWS_WAITS = (0.05, 0.1, 0.2, 0.4, 0.8) if sys.platform == "win32" else ()


@contextmanager
def atomic_write(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the same folder; when the block ends well, fsync it and give it its
    final name.

    On any error, an interrupt included, the temporary file is removed and `path` is as it was
    before.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false.
        OSError: the disk is full or the folder cannot be written; the message names path and
            remedy.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        _give_name(temporary, path, overwrite)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(
                errno.ENOSPC,
                f"{path}: the disk is full. Free some space or choose another folder; nothing was overwritten",
            ) from error
        if error.errno is not None and error.filename is None:  # of write and fsync
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        _remove(temporary)


def _give_name(temporary: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        _replace(temporary, path)
        return
    try:
        os.link(temporary, path)  # unlike rename, fails when the name is taken, without a gap between test and act
    except FileExistsError:
        raise _name_is_taken(path) from None
    except OSError:
        # exFAT, FAT32 and some FUSE mounts have no hard links; each says so with another number.
        _take_name(path)
        try:
            _replace(temporary, path)
        except OSError:
            path.unlink()
            raise


def _take_name(path: Path) -> None:
    """Make an empty file of that name, which fails when the name is taken."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        raise _name_is_taken(path) from None


def _name_is_taken(path: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, f"{path} exists already. Choose another name; it was not overwritten")


def _replace(temporary: Path, path: Path) -> None:
    """On Windows a virus scanner may hold the file open for a moment."""
    for seconds in WINDOWS_WAITS:
        try:
            os.replace(temporary, path)
            return
        except PermissionError:
            time.sleep(seconds)
    os.replace(temporary, path)


def _remove(temporary: Path) -> None:
    """A leftover is better than an error after the file has its name."""
    for seconds in (*WINDOWS_WAITS, 0.0):
        try:
            temporary.unlink(missing_ok=True)
            return
        except PermissionError:
            time.sleep(seconds)
