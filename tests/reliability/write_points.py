"""Every request of a process to the disk, counted, so that a fault can happen at each of them."""

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NEEDS_SPACE = ("open", "write", "fsync", "mkdir", "link", "replace")
CHANGES = (*NEEDS_SPACE, "unlink", "chmod")
_NAMED = ("mkdir", "replace", "link", "unlink", "chmod")  # functions of os whose first argument is a path


@dataclass
class WritePoints:
    """`fault` is called at the n-th request of one of `kinds` to a file below `folder`, and with
    `stays` at all later ones. It raises or ends the process.
    """

    folder: Path
    fault: Callable[["WritePoints", str | None], None]
    at: int
    kinds: tuple[str, ...] = CHANGES
    stays: bool = False
    count: int = 0
    unsynced: dict[str, None] = field(default_factory=dict)  # files that a power cut would empty
    _names: dict[int, str] = field(default_factory=dict)

    def install(self) -> None:
        """Replace the functions, for good: the process is a test's."""
        for name in _NAMED:
            setattr(os, name, self._guard(name, getattr(os, name)))
        os.open = self._guard_open(os.open)
        os.fsync = self._guard_fsync(os.fsync)
        builtins.open = io.open = self._guard_stream(io.open)

    def _reach(self, kind: str, path: object) -> bool:
        if kind not in self.kinds or not str(path).startswith(str(self.folder)):
            return False
        self.count += 1
        return self.count == self.at or (self.stays and self.count > self.at)

    def _guard(self, kind: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def request(path: Any, *rest: Any, **named: Any) -> Any:
            if self._reach(kind, path):
                self.fault(self, str(path))
            result = real(path, *rest, **named)
            if kind == "replace" and str(path) in self.unsynced:
                self.unsynced[str(rest[0])] = None
            if kind in ("replace", "unlink"):
                self.unsynced.pop(str(path), None)
            return result

        return request

    def _guard_open(self, real: Callable[..., int]) -> Callable[..., int]:
        def request(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            if flags & os.O_CREAT and self._reach("open", path):
                self.fault(self, str(path))
            return real(path, flags, *rest, **named)

        return request

    def _guard_fsync(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def request(descriptor: int) -> None:
            name = self._names.get(descriptor, "")
            if self._reach("fsync", name):
                self.fault(self, None)
            real(descriptor)
            self.unsynced.pop(name, None)

        return request

    def _guard_stream(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def request(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            writes = isinstance(file, (str, os.PathLike)) and any(letter in mode for letter in "wax+")
            if writes and self._reach("open", file):
                self.fault(self, str(file))
            stream = real(file, mode, *rest, **named)
            if writes and str(file).startswith(str(self.folder)):
                self._names[stream.fileno()] = str(file)
                stream.write = self._guard_write(stream, str(file), stream.write)
            return stream

        return request

    def _guard_write(self, stream: Any, name: str, real: Callable[[Any], int]) -> Callable[[Any], int]:
        def request(content: Any) -> int:
            self.unsynced[name] = None
            if self._reach("write", name):
                real(content[: len(content) // 2])  # a write that is cut short
                stream.flush()
                self.fault(self, None)
            return real(content)

        return request


def die(points: WritePoints, path: str | None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def cut_power(points: WritePoints, path: str | None) -> None:
    """Lose what was not synced: the files have their names, and zeros in them."""
    for number, name in enumerate(points.unsynced):
        if os.path.exists(name):
            size = os.path.getsize(name)
            os.truncate(name, 0)
            os.truncate(name, size if number % 2 else 0)
    die(points, path)


def raise_error(number: int) -> Callable[[WritePoints, str | None], None]:
    def fault(points: WritePoints, path: str | None) -> None:
        raise OSError(number, os.strerror(number), path)

    return fault


FULL, READ_ONLY, DENIED = errno.ENOSPC, errno.EROFS, errno.EACCES
