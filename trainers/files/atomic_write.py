"""Writing a file so that its final name only ever holds the whole of it."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _give_name(temporary: Path, path: Path, overwrite: bool) -> None:
    if overwrite:
        os.replace(temporary, path)
        return
    try:
        os.link(temporary, path)  # unlike rename, fails when the name is taken, without a gap between test and act
    except FileExistsError:
        raise FileExistsError(
            errno.EEXIST, f"{path} exists already. Choose another name; it was not overwritten"
        ) from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        # A file system without hard links (exFAT): test, then rename.
        if path.exists():
            raise FileExistsError(
                errno.EEXIST, f"{path} exists already. Choose another name; it was not overwritten"
            ) from None
        os.replace(temporary, path)
