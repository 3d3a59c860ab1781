"""Interrupts in every stage, NaN at every step, states that are damaged or of another run."""

import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from tests.limits import wait_until
from tests.reliability import child, examine
from tests.reliability.child import Child
from tests.reliability.kills import run_toy
from tests.reliability.outcome import Outcome
from tests.reliability.toy_run import Journal, JournalHost, make_dataset, record_states, train
from tests.unit.training.toy_family import PreparedToy
from trainers.dataset.dataset import Dataset
from trainers.training.events import Event, Interrupted, StageStarted, StepDone
from trainers.training.resume.run_lock import is_locked
from trainers.training.resume.state_ring import list_states


class InterruptedHost(JournalHost):
    """Raises at its n-th event or question: Interrupted, as the host does, or KeyboardInterrupt, as
    a second Ctrl-C does.
    """

    def __init__(self, journal: Journal, at: int, error: type[BaseException]) -> None:
        super().__init__(journal)
        self._journal, self._at, self._error, self._stage = journal, at, error, "before loading"

    def report(self, event: Event) -> None:
        super().report(event)
        if isinstance(event, StageStarted):
            self._stage = event.stage
        self._count(f"in {self._stage}")

    def check_interrupted(self) -> None:
        self._count(f"in {self._stage}")

    def _count(self, where: str) -> None:
        self._at -= 1
        if self._at == 0:
            self._journal.add("interrupted", where)
            raise self._error


def interrupt_everywhere(dataset: Dataset, whole: Path, folder: Path, *, every: int = 1) -> Outcome:
    outcome = Outcome("interrupt at each event of each stage")
    stages: dict[str, int] = {}
    for error in (Interrupted, KeyboardInterrupt):
        at = 1
        while True:
            output = folder / error.__name__ / str(at) / "output"

            def action(journal: Journal, output: Path = output, at: int = at, error: Any = error) -> None:
                with record_states(journal, wait=True):
                    train(dataset, output, InterruptedHost(journal, at, error))

            ended = child.run(action, output.parent)
            if ended.exit_code == 0:
                break
            (where,) = (line.removeprefix("interrupted in ") for line in ended.lines if line.startswith("interrupted"))
            stages[where] = stages.get(where, 0) + 1
            again = child.run(partial(run_toy, dataset, output), output.parent)
            problems = [again.error] if again.exit_code else examine.compare_with(whole, output)
            if ended.last_step > 1 and again.first_step and again.first_step != ended.last_step + 1:
                problems.append(f"stopped after step {ended.last_step}, went on at {again.first_step}")
            outcome.add(problems, f"{error.__name__} {at} in {where}")
            at += every
    outcome.facts = dict(stages)
    return outcome


def inject_nan(dataset: Dataset, whole: Path, folder: Path, *, steps: tuple[int, ...]) -> Outcome:
    """The loss of each step in turn is NaN; then the cause is gone, and the run goes on."""
    outcome = Outcome("NaN in the loss of each step")
    for step in steps:
        output = folder / str(step) / "output"

        def action(journal: Journal, output: Path = output, step: int = step) -> None:
            _poison(step)
            run_toy(dataset, output, journal)

        ended = child.run(action, output.parent)
        problems = [] if "NonFiniteLoss" in ended.error else [f"no NonFiniteLoss, but {ended.error or 'success'}"]
        again = child.run(partial(run_toy, dataset, output), output.parent)
        problems += [again.error] if again.exit_code else examine.compare_with(whole, output)
        if step > 1 and again.first_step != step:
            problems.append(f"went on at step {again.first_step}")
        outcome.add(problems, f"step {step}")
    return outcome


def _poison(step: int) -> None:
    real = PreparedToy.loss_terms

    def loss_terms(self: PreparedToy, items: Any, now: int) -> Any:
        return (losses * (float("nan") if now == step else 1.0) for losses in real(self, items, now))

    PreparedToy.loss_terms = loss_terms


def damage_newest_state(dataset: Dataset, whole: Path, folder: Path) -> Outcome:
    """The newest state of a stopped run is cut, filled with zeros, or of another run; or both."""
    outcome = Outcome("newest state damaged, or of another run")
    other = folder / "other" / "output"
    child.run(lambda journal: _stop_after(dataset, other, journal, seed=7), other.parent)
    for damage in ("cut", "zeros", "empty", "of another run", "all empty"):
        output = folder / damage / "output"
        child.run(partial(_stop_after, dataset, output), output.parent)
        (run,), (stranger,) = examine.list_runs(output), examine.list_runs(other)
        newest, before = list_states(run / "state")
        content = newest.read_bytes()
        if damage == "of another run":
            shutil.copyfile(list_states(stranger / "state")[0], newest)
        else:
            newest.write_bytes({"cut": content[:-100], "zeros": bytes(len(content))}.get(damage, b""))
        if damage == "all empty":
            before.write_bytes(b"")
        ended = child.run(partial(run_toy, dataset, output), output.parent)
        problems = [ended.error] if ended.exit_code else examine.compare_with(whole, output)
        first = 1 if damage == "all empty" else int(before.stem[4:]) + 1
        if ended.first_step != first:
            problems.append(f"went on at step {ended.first_step}, not {first}")
        outcome.add(problems, damage)
    return outcome


def _stop_after(dataset: Dataset, output: Path, journal: Journal, **given: Any) -> None:
    """Run until an interrupt: nothing but the ring of states counts, as after a kill."""
    host = InterruptedHost(journal, 16, Interrupted)
    with record_states(journal, wait=True):
        train(dataset, output, host, **given)


def lock_one_run(dataset: Dataset, whole: Path, folder: Path) -> Outcome:
    """A second process asks for the run that a first one trains; then the first is killed."""
    outcome = Outcome("two processes on one run, one killed")
    output = folder / "output"
    child.run(partial(_stop_after, dataset, output), folder)
    (run,) = examine.list_runs(output)
    holder = Child(lambda journal: _hold(dataset, output, folder / "holds"), folder)
    wait_until((folder / "holds").exists, what="the first process")
    refused = child.run(partial(run_toy, dataset, output), folder)
    problems = [] if "RunInUse" in refused.error else [f"not refused: {refused.error or 'it trained'}"]
    problems += [] if is_locked(run) else ["the run is not locked"]
    holder.kill()
    holder.wait()
    problems += ["the lock outlived its process"] if is_locked(run) else []
    ended = child.run(partial(run_toy, dataset, output), folder)
    problems += [ended.error] if ended.exit_code else examine.compare_with(whole, output)
    outcome.add(problems, "kill -9 of the one that trains")
    return outcome


def _hold(dataset: Dataset, output: Path, sign: Path) -> None:
    """Train, and never come to an end."""

    class Endless(JournalHost):
        def check_interrupted(self) -> None:
            sign.touch()
            signal.pause()

    train(dataset, output, Endless(Journal(output.parent / "holder.txt")))


def train_long(dataset: Dataset, folder: Path, *, num_steps: int) -> Outcome:
    """Memory, files and messages of a long run, from a tenth of it to its end."""
    outcome = Outcome(f"{num_steps:,} steps without growth")
    output = folder / "output"

    def action(journal: Journal) -> None:
        given = {"save_every_n_steps": 0, "sample_every_n_steps": 0, "save_state_every_n_minutes": 0.01}
        train(dataset, output, _Measuring(journal, output, num_steps), max_train_steps=num_steps, **given)

    ended = child.run(action, folder)
    first, *_, last = [list(map(int, line.split()[1:])) for line in ended.lines if line.startswith("measured")]
    growth = (last[0] - first[0]) / 2**20
    notices = sum(line.startswith("notice") for line in ended.lines)
    problems = [ended.error] if ended.exit_code else []
    problems += [f"{growth:.1f} MB more memory"] if growth > 16 else []
    problems += [f"{last[1] - first[1]} more files"] if last[1] > first[1] + 1 else []
    problems += [f"{notices} messages"] if notices > 5 else []
    outcome.add(problems, f"{num_steps} steps")
    outcome.facts = {"MB more": growth, "files": last[1], "messages": notices, "bytes of progress.json": last[2]}
    return outcome


class _Measuring(JournalHost):
    def __init__(self, journal: Journal, output: Path, num_steps: int) -> None:
        super().__init__(journal)
        self._journal, self._output, self._times = journal, output, {num_steps // 10, num_steps}
        self._num_asked = 0

    def check_interrupted(self) -> None:
        self._num_asked += 1
        if self._num_asked not in self._times:
            return
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
        (run,) = examine.list_runs(self._output)
        files = [path for path in run.rglob("*") if path.is_file()]
        self._journal.add("measured", resident, len(files), (run / "progress.json").stat().st_size)


def change_pictures(dataset: Dataset, whole: Path, folder: Path) -> Outcome:
    """A picture is deleted, or replaced by another, after the second step. The run goes on: all
    pictures are read before the first step.
    """
    outcome = Outcome("picture deleted or replaced in training")
    for change in ("deleted", "replaced"):
        output = folder / change / "output"
        output.parent.mkdir(parents=True)
        own = make_dataset(output.parent / "images")

        def action(journal: Journal, own: Dataset = own, output: Path = output, change: str = change) -> None:
            train(own, output, _Changing(journal, output.parent / "images" / "0.png", change))

        ended = child.run(action, output.parent)
        outcome.add([ended.error] if ended.exit_code else examine.compare_with(whole, output), change)
    return outcome


class _Changing(JournalHost):
    def __init__(self, journal: Journal, picture: Path, change: str) -> None:
        super().__init__(journal)
        self._picture, self._change = picture, change

    def report(self, event: Event) -> None:
        super().report(event)
        if isinstance(event, StepDone) and event.step == 2:
            self._picture.unlink()
            if self._change == "replaced":
                Image.new("RGB", (64, 64), "white").save(self._picture)
