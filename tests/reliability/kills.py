"""Processes that end at any moment: killed, ended by a signal, or by a power cut."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.reliability import examine
from tests.reliability.child import Child, Ended
from tests.reliability.outcome import Outcome
from tests.reliability.toy_run import VALIDATED, Journal, JournalHost, make_alike_dataset, record_states, train
from tests.reliability.write_points import WritePoints, cut_power, die
from trainers.dataset.dataset import Dataset

MAX_LINES = 24  # about what a run writes from its beginning to its end
MAX_SECONDS_AFTER_LINE = 0.05


def run_toy(dataset: Dataset, output: Path, journal: Journal, *, wait: bool = True, **given: Any) -> None:
    with record_states(journal, wait=wait):
        journal.add("began")
        train(dataset, output, JournalHost(journal), **given)


class StoppedRun:
    """One training that is stopped again and again until it is finished."""

    def __init__(
        self, dataset: Dataset, whole: Path, folder: Path, outcome: Outcome, *, wait: bool = True, **given: Any
    ) -> None:
        self._dataset = dataset
        self._whole = whole
        self._folder = folder
        self._outcome = outcome
        self._wait = wait
        self._given = given
        self._newest_state = 0
        self._last_step = 0
        self.most_lost = 0

    @property
    def output(self) -> Path:
        return self._folder / "output"

    def start(self, before: Callable[[], None] = lambda: None, **given: Any) -> Child:
        def action(journal: Journal) -> None:
            before()
            run_toy(self._dataset, self.output, journal, wait=self._wait, **{**self._given, **given})

        return Child(action, self._folder)

    def check(self, ended: Ended, what: str, **options: bool) -> bool:
        """Check what a process that ended has found, and what it has left. Return whether the run
        is finished.
        """
        problems = self._check_start(ended) + examine.list_damage(self.output, **options)
        if ended.exit_code == 0:
            problems += examine.compare_with(self._whole, self.output)
        elif ended.error:
            problems.append(ended.error)
        self._outcome.add(problems, what)
        return ended.exit_code == 0 or bool(problems)

    def _check_start(self, ended: Ended) -> list[str]:
        problems = []
        if ended.first_step:
            began_at = ended.first_step - 1
            lost = self._last_step - began_at
            self.most_lost = max(self.most_lost, lost)
            if began_at < self._newest_state:
                problems.append(f"went on at step {began_at}, though the state of {self._newest_state} was saved")
            if self._wait and lost > 1:
                problems.append(f"{lost} steps are lost, and a state was saved after each")
        self._last_step = ended.last_step or self._last_step
        self._newest_state = max([self._newest_state, *ended.list_numbers("state")])
        return problems


def kill_at_random_moments(dataset: Dataset, whole: Path, folder: Path, *, trials: int) -> Outcome:
    """kill -9. In half of the runs each step waits for its state, and at most one step may be lost;
    in the others states are written while the training goes on.
    """
    return _stop_at_random_moments(
        Outcome("kill -9 at random moments"), dataset, whole, folder, trials=trials, numbers=[signal.SIGKILL]
    )


def end_by_signals(dataset: Dataset, whole: Path, folder: Path, *, trials: int) -> Outcome:
    """SIGTERM and SIGHUP, with the handlers of the command line."""
    outcome = Outcome("SIGTERM and SIGHUP at random moments")
    numbers = [signal.SIGTERM, signal.SIGHUP]
    return _stop_at_random_moments(outcome, dataset, whole, folder, trials=trials, numbers=numbers)


def end_while_validating(folder: Path, *, trials: int) -> Outcome:
    """kill -9, SIGTERM and SIGHUP of a run with validation, which keeps its best LoRA and stops
    early.
    """
    dataset, whole = make_alike_dataset(folder / "images"), folder / "whole" / "output"
    ended = Child(lambda journal: run_toy(dataset, whole, journal, **VALIDATED), folder / "whole").wait()
    assert ended.exit_code == 0 and ended.last_step == 13, ended
    return _stop_at_random_moments(
        Outcome("kill -9, SIGTERM and SIGHUP with validation"),
        dataset,
        whole,
        folder / "runs",
        trials=trials,
        numbers=[signal.SIGKILL, signal.SIGTERM, signal.SIGHUP],
        max_lines=len(ended.lines),
        **VALIDATED,
    )


def _stop_at_random_moments(
    outcome: Outcome,
    dataset: Dataset,
    whole: Path,
    folder: Path,
    *,
    trials: int,
    numbers: list[int],
    max_lines: int = MAX_LINES,
    **given: Any,
) -> Outcome:
    draw = random.Random(1)
    num_stopped = num_training = num_runs = 0
    most_lost = {True: 0, False: 0}
    while num_stopped < trials:
        wait = num_runs % 2 == 0
        stopped = StoppedRun(dataset, whole, folder / str(num_runs), outcome, wait=wait, **given)
        num_runs += 1
        is_finished = False
        while not is_finished:
            process = stopped.start(before=_handle_signals)
            if num_stopped < trials:
                # by what it has written: then the moments reach all of a run on any machine
                process.wait_for_lines(draw.randrange(max_lines))
                time.sleep(draw.uniform(0, MAX_SECONDS_AFTER_LINE))
                process.kill(draw.choice(numbers))
            ended = process.wait()
            is_stopped = ended.exit_code in (*[-number for number in numbers], *[128 + number for number in numbers])
            num_stopped += is_stopped
            num_training += is_stopped and bool(ended.last_step)
            is_finished = stopped.check(ended, f"run {num_runs}, after {num_stopped} ends")
        most_lost[wait] = max(most_lost[wait], stopped.most_lost)
    outcome.facts = {
        "ends": num_stopped,
        "after a step": num_training,
        "runs": num_runs,
        "most steps lost with a state after each": most_lost[True],
        "with states in a thread": most_lost[False],
    }
    return outcome


def _handle_signals() -> None:
    from trainers.__main__ import _exit_on_signal

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _exit_on_signal)


def kill_at_each_write(dataset: Dataset, whole: Path, folder: Path, *, every: int = 1) -> Outcome:
    """kill -9 at each request to the disk, or in the middle of it."""
    return _end_at_each_write(Outcome("kill -9 at each write"), dataset, whole, folder, every=every, fault=die)


def cut_power_at_each_write(dataset: Dataset, whole: Path, folder: Path, *, every: int = 1) -> Outcome:
    """The same, and what was not synced is lost."""
    outcome = Outcome("power cut at each write")
    return _end_at_each_write(outcome, dataset, whole, folder, every=every, fault=cut_power)


def _end_at_each_write(
    outcome: Outcome,
    dataset: Dataset,
    whole: Path,
    folder: Path,
    *,
    every: int,
    fault: Callable[[WritePoints, str | None], None],
) -> Outcome:
    number = 1
    while True:
        stopped = StoppedRun(dataset, whole, folder / str(number), outcome)
        points = WritePoints(stopped.output, fault, number)
        what, after_power_cut = f"request {number}", fault is cut_power
        first = stopped.start(before=points.install).wait()
        if stopped.check(first, what, after_power_cut=after_power_cut):
            break
        stopped.check(stopped.start().wait(), f"{what}, gone on with", after_power_cut=after_power_cut)
        number += every
    outcome.facts = {"requests": number - 1}
    return outcome
