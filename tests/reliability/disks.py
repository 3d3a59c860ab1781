"""Disks that are full, read-only or forbidden, from any request on; and clocks that go back."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.reliability import child, examine
from tests.reliability.kills import run_toy
from tests.reliability.outcome import Outcome
from tests.reliability.toy_run import Journal
from tests.reliability.write_points import CHANGES, DENIED, FULL, NEEDS_SPACE, READ_ONLY, WritePoints, raise_error
from trainers.dataset.dataset import Dataset

HOUR = 3600


def fill_disk(dataset: Dataset, whole: Path, folder: Path, *, every: int = 1) -> Outcome:
    """ENOSPC at each request to the disk: once, or from then on. A write is cut in the middle."""
    outcome = Outcome("disk full at each write")
    for stays in (False, True):
        _fail_at_each(outcome, dataset, whole, folder / str(stays), every, FULL, NEEDS_SPACE, stays=stays)
    return outcome


def forbid_disk(dataset: Dataset, whole: Path, folder: Path, *, every: int = 1) -> Outcome:
    """A disk that becomes read-only, or a folder whose rights are taken away."""
    outcome = Outcome("read-only or forbidden from each write on")
    for number in (READ_ONLY, DENIED):
        _fail_at_each(outcome, dataset, whole, folder / str(number), every, number, CHANGES, stays=True)
    return outcome


def _fail_at_each(
    outcome: Outcome,
    dataset: Dataset,
    whole: Path,
    folder: Path,
    every: int,
    error: int,
    kinds: tuple[str, ...],
    *,
    stays: bool,
) -> None:
    at, num_trained, num_refused = 1, 0, 0
    while True:
        place = folder / str(at)
        output = place / "output"
        # with `stays` the temporary and home folders are on that disk too: nothing can be rescued
        points = WritePoints(place if stays else output, raise_error(error), at, kinds=kinds, stays=stays)
        what = f"{os.strerror(error)} at request {at}{' and after' if stays else ''}"

        def action(journal: Journal, output: Path = output, points: WritePoints = points) -> None:
            points.install()
            run_toy(dataset, output, journal)
            journal.add("requests", points.count)

        ended = child.run(action, place)
        is_trained = ended.exit_code == 0
        num_trained += is_trained
        num_refused += not is_trained
        outcome.add(_judge(ended, output) if not is_trained else [], what)
        if is_trained and max(ended.list_numbers("requests")) < at:
            break
        again = child.run(partial(run_toy, dataset, output), place)
        problems = [again.error] if again.exit_code else examine.compare_with(whole, output, was_full=True)
        outcome.add(problems, f"{what}, then with space")
        at += every
    suffix = f"{os.strerror(error).lower()}{' from then on' if stays else ' once'}"
    outcome.facts[suffix] = f"{num_trained} trained, {num_refused} ended with an error"


def _judge(ended: child.Ended, output: Path) -> list[str]:
    """An error of the disk, with the file or folder in its words; and nothing half written."""
    problems = examine.list_damage(output)
    if not ended.error.startswith(("OSError", "PermissionError")):
        problems.append(f"exit code {ended.exit_code}, {ended.error or 'no error'}")
    elif str(output) not in ended.error:
        problems.append(f"the error names no file: {ended.error}")
    return problems


def set_clock_back(dataset: Dataset, whole: Path, folder: Path) -> Outcome:
    """The clock goes back by an hour in the middle of a run that is stopped; its files are in the
    future then. And it goes forward by an hour.
    """
    outcome = Outcome("clock set back, clock set forward")
    for shift in (-HOUR, HOUR):
        output = folder / str(shift) / "output"

        def action(journal: Journal, output: Path = output, shift: int = shift) -> None:
            _jump_after(3, shift)
            run_toy(dataset, output, journal)

        process = child.Child(partial(_stop_at, 5, action), output.parent)
        process.wait()
        ended = child.run(action, output.parent)
        problems = [ended.error] if ended.exit_code else examine.compare_with(whole, output)
        if ended.first_step < 5:
            problems.append(f"went on at step {ended.first_step}")
        outcome.add(problems, f"{shift} s")
    return outcome


def _stop_at(step: int, action: Callable[[Journal], None], journal: Journal) -> None:
    """Die after a step."""
    add = journal.add

    def add_or_die(*words: object) -> None:
        add(*words)
        if words == ("step", step):
            os.kill(os.getpid(), 9)

    journal.add = add_or_die  # pyright: ignore[reportAttributeAccessIssue]
    action(journal)


def _jump_after(num_calls: int, seconds: int) -> None:
    real, count = time.time, 0

    def read() -> float:
        nonlocal count
        count += 1
        return real() + (seconds if count > num_calls else 0)

    time.time = read
