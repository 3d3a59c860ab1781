"""The last states of a run: written while the training goes on, the oldest removed."""

import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .state_file import DamagedState, PackedState, TrainingState, read_state, write_state

KEPT = 2  # the newest, and one before it in case that the newest is damaged
MAX_TIME_SHARE = 0.01
_NAME = re.compile(r"step(\d+)\.safetensors")


def state_path(folder: Path, step: int) -> Path:
    return folder / f"step{step:08d}.safetensors"


def list_states(folder: Path) -> list[Path]:
    """List the states in a folder, the newest first."""
    found = [(int(match[1]), path) for path in folder.glob("step*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def remove_newer(folder: Path, step: int) -> None:
    """Remove the states after a step: the run goes on from that step, as they are damaged. They
    would take the places of good ones.
    """
    for path in list_states(folder):
        if path.name > state_path(folder, step).name:
            with suppress(OSError):
                path.unlink()


def read_newest(folder: Path, run: str, *, max_step: int, warn: Callable[[str], None]) -> TrainingState | None:
    """Read the newest valid state of at most `max_step` steps; `warn` of those that are damaged, or
    not of the run with this fingerprint.
    """
    for path in list_states(folder):
        try:
            state = read_state(path)
            if state.run != run:
                raise DamagedState(f"{path} is a state of another run")
        except (DamagedState, OSError) as error:
            warn(f"a saved state cannot be used, and the one before it is tried: {error}")
            continue
        if state.step <= max_step:
            return state
    return None


class StateRing:
    """Writes states into a folder, which is made with the first one.

    `interval` is in seconds. It grows where a state takes long to write, so that all of them
    together take at most MAX_TIME_SHARE of the run.
    """

    def __init__(self, folder: Path, *, interval: float) -> None:
        self._folder = folder
        self._interval = interval
        self._next_at = time.monotonic() + interval
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None
        self._seconds_of_thread = 0.0
        self.seconds = 0.0  # that the training has waited for copies, or lost to the thread

    def is_due(self) -> bool:
        return bool(self._interval) and time.monotonic() >= self._next_at and not self._is_writing()

    def _is_writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start_writing(self, make: Callable[[], PackedState]) -> None:
        """Copy a state, and write the copy in a thread.

        Raises:
            OSError: the state before this one could not be written.
        """
        began = time.monotonic()
        packed = make()
        cost = time.monotonic() - began
        self._finish_thread()
        self._next_at = time.monotonic() + max(self._interval, (cost + self._seconds_of_thread) / MAX_TIME_SHARE)
        self.seconds += cost
        self._thread = threading.Thread(target=self._write_in_thread, args=[packed], name="lora_trainer state")
        self._thread.start()

    def write(self, packed: PackedState) -> None:
        """Write a state now: the last one of a run.

        Raises:
            OSError: it could not be written.
        """
        with suppress(OSError):  # of an earlier state, which this one replaces
            self._finish_thread()
        write_state(state_path(self._folder, packed.step), packed)
        self._remove_old()

    def keep_only_newest(self) -> None:
        self._remove_old(kept=1)

    def close(self) -> None:
        with suppress(OSError):  # the run has its result
            self._finish_thread()

    def _write_in_thread(self, packed: PackedState) -> None:
        began = time.thread_time()
        try:
            write_state(state_path(self._folder, packed.step), packed)
            self._remove_old()
        except OSError as error:
            self._error = error
        self._seconds_of_thread = time.thread_time() - began

    def _finish_thread(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self.seconds += self._seconds_of_thread
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _remove_old(self, *, kept: int = KEPT) -> None:
        for path in list_states(self._folder)[kept:]:
            with suppress(OSError):  # another program looks at it
                path.unlink()
