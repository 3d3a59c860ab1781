"""Writes files so that the final name never has a partial file."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the same folder; if the block succeeds, fsync the file and give it
    its final name.

    On any error, also on an interrupt, the temporary file is removed and `path` does not change.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false.
        OSError: the disk is full or the folder is not writable. The message names the path and
            what to do.
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
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _give_name(temporary: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)  # fails if the name is taken, with no gap between check and action
    except FileExistsError:
        raise FileExistsError(
            errno.EEXIST, f"{path} exists already. Choose another name; it was not overwritten"
        ) from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        # A file system without hard links (exFAT): check, then rename.
        if path.exists():
            raise FileExistsError(
                errno.EEXIST, f"{path} exists already. Choose another name; it was not overwritten"
            ) from None
        os.replace(temporary, path)
