"""Blocks that Ctrl-C and signals may not cut in half. Imports no torch."""

from collections.abc import Iterator
from contextlib import contextmanager

_waiting: list[BaseException] = []
_depth = 0
_is_interrupted = False


def remember_interrupt() -> None:
    """Remember a Ctrl-C. The exception that it raises can get lost inside an import."""
    global _is_interrupted
    _is_interrupted = True


def was_interrupted() -> bool:
    return _is_interrupted


def raise_when_safe(error: BaseException) -> None:
    """Raise the error, or at the end of the critical section that is running. For signal handlers,
    which Python calls in the main thread.
    """
    if not _depth:
        raise error
    _waiting.append(error)


@contextmanager
def critical_section() -> Iterator[None]:
    """Inside the block no signal handler of ours raises."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _waiting and not _depth:
            error = _waiting[0]
            _waiting.clear()
            raise error
