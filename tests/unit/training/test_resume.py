"""Runs go on exactly where they stopped, are loaded when finished, and finish on request."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.unit.training.test_loop import ListeningHost, dataset  # noqa: F401 (a fixture)
from tests.unit.training.toy_family import PreparedToy, ToyFamily
from trainers import critical_section as critical_section_module
from trainers.critical_section import critical_section, raise_when_safe
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.dataset import Dataset
from trainers.files.tensor_cache import TensorCache
from trainers.files.weight_file import WeightFile
from trainers.training.config import TrainingConfig
from trainers.training.console_host import ConsoleHost
from trainers.training.ema import AdapterEma
from trainers.training.events import Interrupted, Notice, Paused, StepDone
from trainers.training.finished_run import load_finished
from trainers.training.flat_weights import FlatWeights
from trainers.training.loop import train_lora
from trainers.training.optimizer_step import OptimizerStep
from trainers.training.plan import plan_training
from trainers.training.resume import state_ring
from trainers.training.resume.choose_run import read_finished
from trainers.training.resume.run_lock import RunInUse, RunLock, is_locked
from trainers.training.resume.state_file import DamagedState, read_state
from trainers.training.resume.state_ring import list_states
from trainers.training.run_folder import RunFolder
from trainers.training.run_settings import RunSettings
from trainers.training.run_writer import RunWriter
from trainers.training.trained_lora import TrainedLora


class StoppingHost(ListeningHost):
    """Cancels, or asks for something, after a number of steps of this process."""

    def __init__(self, *, cancel_after: int | None = None, request: str = "", after: int = 0) -> None:
        super().__init__(cancel_after=cancel_after)
        self._asked, self._after = request, after

    def take_request(self) -> Any:
        if self._asked and len(self.select(StepDone)) >= self._after:
            asked, self._asked = self._asked, ""
            return asked
        return None

    @property
    def messages(self) -> str:
        return "\n".join(event.message for event in self.select(Notice))


def train(
    data: Dataset,
    folder: Path,
    host: ListeningHost | None = None,
    *,
    resume: str = "auto",
    name: str = "toy",
    keep_inside: bool = True,
    **given: Any,
) -> TrainedLora:
    usual = {"rank": 2, "max_train_steps": 12, "learning_rate": 1e-2, "save_dtype": "fp32", "lr_warmup_steps": 2.0}
    settings = RunSettings(TrainingConfig(**{**usual, **given}), BucketConfig(resolution=64, bucket_reso_steps=32))
    return train_lora(
        ToyFamily(),
        plan_training(data, settings),
        host or StoppingHost(),
        run_folder=RunFolder(folder, name, keep_inside=keep_inside),
        cache=TensorCache(None),
        resume=resume,
    )


def stop(data: Dataset, folder: Path, after: int, **given: Any) -> StoppingHost:
    host = StoppingHost(cancel_after=after)
    with pytest.raises(Interrupted):
        train(data, folder, host, **given)
    return host


def runs(folder: Path) -> list[Path]:
    return sorted((folder / "runs").iterdir())


def assert_equal(trained: TrainedLora, other: TrainedLora) -> None:
    assert trained.losses == other.losses and trained.steps == other.steps
    assert trained.state_dict.keys() == other.state_dict.keys()
    assert all(torch.equal(trained.state_dict[name], tensor) for name, tensor in other.state_dict.items())


OPTIMIZERS = [
    ("AdamW", {}),
    ("AdamW8bit", {"optimizer_args": "min_8bit_size=1"}),
    ("Lion", {}),
    ("Adafactor", {}),
    ("Prodigy", {"learning_rate": 1.0}),
    ("AdamWScheduleFree", {"lr_scheduler": "constant", "ema_decay": 0.0}),
    ("ProdigyPlusScheduleFree", {"lr_scheduler": "constant", "ema_decay": 0.0, "learning_rate": 1.0}),
    ("CAME", {}),
    ("Lion8bit", {"optimizer_args": "min_8bit_size=1"}),
    ("torch.optim.RAdam", {}),
    ("torch.optim.NAdam", {"lr_scheduler": "cosine_with_restarts", "lr_num_cycles": 3}),
    ("torch.optim.Adamax", {"lr_scheduler": "constant_with_cooldown", "lr_decay_steps": 0.5}),
]


@pytest.mark.parametrize(("optimizer", "given"), OPTIMIZERS, ids=[name for name, _ in OPTIMIZERS])
def test_a_run_that_was_stopped_twice_equals_one_that_was_not(dataset, tmp_path, optimizer, given):  # noqa: F811
    given = {"optimizer": optimizer, "ema_decay": 0.9, "lora_dropout": 0.2, "gradient_accumulation_steps": 2, **given}
    whole = train(dataset, tmp_path / "whole", **given)
    parts = tmp_path / "parts"
    stop(dataset, parts, 4, **given)
    stop(dataset, parts, 3, **given)
    host = StoppingHost()
    trained = train(dataset, parts, host, **given)
    assert_equal(trained, whole)
    assert len(host.select(StepDone)) == 5 and "at step 7" in host.messages
    if given["ema_decay"]:
        assert torch.equal(*(load_file(run.ema_path)["diffusion_model_0.lora_up.weight"] for run in (trained, whole)))
    (run,) = runs(parts)
    rows = (run / "loss.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == [str(step) for step in range(1, 13)]
    assert len(list_states(run / "state")) == 1, "only a longer run can still use the last state"


def test_a_state_has_every_part_of_the_training(dataset, tmp_path):  # noqa: F811
    stop(dataset, tmp_path, 5, ema_decay=0.9)
    (run,) = runs(tmp_path)
    state = read_state(list_states(run / "state")[0])
    assert state.step == len(state.losses) == 5 and state.schedule_step == 5 and state.has_learned
    assert state.adapters.keys() == state.ema.keys() and len(state.adapters) == 2
    num_weights = sum(matrix.numel() for matrix in state.adapters.values())
    assert state.optimizer["state"][0]["exp_avg"].shape == (num_weights,), "AdamW has all matrices as one tensor"


def test_a_finished_run_is_loaded_and_nothing_is_trained(dataset, tmp_path):  # noqa: F811
    first, host = train(dataset, tmp_path), StoppingHost()
    second = train(dataset, tmp_path, host)
    assert_equal(second, first)
    assert second.was_loaded and second.path == first.path and not host.select(StepDone)
    assert second.metadata["ss_output_name"] == first.metadata["ss_output_name"] == "toy"
    assert len(runs(tmp_path)) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"learning_rate": 2e-2}, "learning_rate 0.01, now 0.02"),
        ({"seed": 1}, "seed 0, now 1"),
        ({"rank": 3}, "rank 2"),
    ],
)
def test_a_run_with_anything_changed_is_a_new_one_and_says_what(dataset, tmp_path, given, said):  # noqa: F811
    stop(dataset, tmp_path, 4)
    host = StoppingHost()
    assert_equal(train(dataset, tmp_path, host, **given), train(dataset, tmp_path / "alone", **given))
    assert said in host.messages and len(runs(tmp_path)) == 2


@pytest.mark.parametrize(
    "given",
    [{"save_every_n_steps": 2}, {"gradient_checkpointing": False}, {"sample_every_n_steps": 5}, {"name": "other"}],
)
def test_what_does_not_change_the_result_begins_no_new_run(dataset, tmp_path, given):  # noqa: F811
    stop(dataset, tmp_path, 4)
    assert train(dataset, tmp_path, **given).steps == 12
    assert len(runs(tmp_path)) == 1


def test_a_changed_caption_begins_a_new_run(dataset, tmp_path):  # noqa: F811
    stop(dataset, tmp_path, 4)
    image = dataset.images[0]
    changed = type(dataset)(
        **{**vars(dataset), "images": [type(image)(**{**vars(image), "caption": "x"}), *dataset.images[1:]]}
    )
    host = StoppingHost()
    train(changed, tmp_path, host)
    assert len(runs(tmp_path)) == 2 and "the dataset's content" in host.messages


def test_new_begins_again(dataset, tmp_path):  # noqa: F811
    train(dataset, tmp_path)
    host = StoppingHost()
    assert not train(dataset, tmp_path, host, resume="new").was_loaded
    assert len(host.select(StepDone)) == 12 and len(runs(tmp_path)) == 2


def test_more_steps_extend_a_finished_run(dataset, tmp_path):  # noqa: F811
    constant = {"lr_scheduler": "constant"}
    train(dataset, tmp_path, **constant)
    host = StoppingHost()
    longer = train(dataset, tmp_path, host, max_train_steps=20, **constant)
    assert len(host.select(StepDone)) == 8 and "at step 12" in host.messages
    assert_equal(longer, train(dataset, tmp_path / "whole", max_train_steps=20, **constant))
    first, second = runs(tmp_path)
    assert (first / "toy.safetensors").exists() and (second / "toy.safetensors").exists()
    assert json.loads((second / "manifest.json").read_text())["continued_from"] == {"run": first.name, "step": 12}


def test_a_longer_cosine_goes_on_with_the_rate_of_the_longer_schedule(dataset, tmp_path):  # noqa: F811
    train(dataset, tmp_path)
    host = StoppingHost()
    train(dataset, tmp_path, host, max_train_steps=24)
    whole = StoppingHost()
    train(dataset, tmp_path / "whole", whole, max_train_steps=24)
    rates = [event.learning_rate for event in whole.select(StepDone)]
    assert [event.learning_rate for event in host.select(StepDone)] == rates[12:]


def test_a_run_is_gone_on_with_by_name_though_its_settings_have_changed(dataset, tmp_path):  # noqa: F811
    stop(dataset, tmp_path, 4)
    (run,) = runs(tmp_path)
    host = StoppingHost()
    assert train(dataset, tmp_path, host, resume=run.name, learning_rate=5e-3).steps == 12
    assert len(host.select(StepDone)) == 8 and "learning_rate 0.01, now 0.005" in host.messages
    assert len(runs(tmp_path)) == 2, "the run of the other settings stays as it was"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rank": 4}, "trains other layers, or with another rank"),
        ({"optimizer": "Adafactor"}, "was trained with AdamW. Set optimizer to it"),
    ],
)
def test_a_named_run_that_does_not_fit_is_refused(dataset, tmp_path, given, said):  # noqa: F811
    stop(dataset, tmp_path, 4)
    (run,) = runs(tmp_path)
    with pytest.raises(ValueError, match=said):
        train(dataset, tmp_path, resume=run.name, **given)
    assert len(runs(tmp_path)) == 1


def test_a_name_that_is_no_run_is_refused_with_those_there_are(dataset, tmp_path):  # noqa: F811
    stop(dataset, tmp_path, 4)
    with pytest.raises(ValueError, match=f"no run 'toys' to go on with. The newest: {runs(tmp_path)[0].name}"):
        train(dataset, tmp_path, resume="toys")


def test_a_deleted_lora_is_made_again_from_the_last_state(dataset, tmp_path):  # noqa: F811
    first = train(dataset, tmp_path)
    first.path.unlink()
    host = StoppingHost()
    assert_equal(train(dataset, tmp_path, host), first)
    assert not host.select(StepDone) and first.path.is_file()


def test_a_lora_that_was_changed_is_not_taken_for_the_result(dataset, tmp_path):  # noqa: F811
    first = train(dataset, tmp_path)
    first.path.write_bytes(first.path.read_bytes()[:-4] + b"\0\0\0\0")
    second = train(dataset, tmp_path)
    assert_equal(second, first)
    assert second.path.name == "toy-2.safetensors"


# --- states ---


def save_each_step(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The interval in minutes for a state after every step."""
    monkeypatch.setattr(state_ring, "MAX_TIME_SHARE", 1e9)
    monkeypatch.setattr(state_ring.StateRing, "_is_writing", lambda self: False)  # wait for the one before
    return {"save_state_every_n_minutes": 1e-9}


def kill(data: Dataset, folder: Path, after: int, monkeypatch: pytest.MonkeyPatch, **given: Any) -> Path:
    """Stop a run as if by a power cut: nothing is saved at its end."""
    given = {**save_each_step(monkeypatch), **given}
    with monkeypatch.context() as cut:
        cut.setattr("trainers.training.loop.TrainingLoop._keep_last_step", lambda self: None)
        stop(data, folder, after, **given)
    (run,) = runs(folder)
    return run


def test_states_are_a_ring_of_two(dataset, tmp_path, monkeypatch):  # noqa: F811
    run = kill(dataset, tmp_path, 9, monkeypatch)
    assert len(list_states(run / "state")) == 2
    assert [path.name for path in (run / "state").iterdir() if path.suffix == ".tmp"] == []


@pytest.mark.parametrize("damage", ["cut", "zeroed", "empty", "one bit", "of another program"])
def test_a_damaged_state_is_passed_over_with_a_warning(dataset, tmp_path, monkeypatch, damage):  # noqa: F811
    whole = train(dataset, tmp_path / "whole")
    run = kill(dataset, tmp_path, 9, monkeypatch)
    newest, before = list_states(run / "state")
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(
        {
            "cut": bytes(content[: len(content) // 2]),
            "zeroed": bytes(len(content)),
            "empty": b"",
            "one bit": bytes(content),
            "of another program": b"PK" + bytes(content),
        }[damage]
    )
    with pytest.raises(DamagedState):
        read_state(newest)
    host = StoppingHost()
    assert_equal(train(dataset, tmp_path, host), whole)
    assert "a saved state cannot be used" in host.messages
    assert f"at step {int(before.stem[4:])}" in host.messages


def test_without_a_usable_state_the_run_begins_again(dataset, tmp_path, monkeypatch):  # noqa: F811
    run = kill(dataset, tmp_path, 9, monkeypatch)
    for path in list_states(run / "state"):
        path.write_bytes(b"")
    assert_equal(train(dataset, tmp_path), train(dataset, tmp_path / "whole"))


def test_a_state_that_cannot_be_written_stops_nothing(dataset, tmp_path, monkeypatch):  # noqa: F811
    def fail(*_: object) -> None:
        raise OSError(28, "the disk is full")

    monkeypatch.setattr(state_ring, "write_state", fail)
    host = StoppingHost()
    trained = train(dataset, tmp_path, host, **save_each_step(monkeypatch))
    assert trained.steps == 12 and "the state of the run could not be saved: [Errno 28]" in host.messages


def test_an_optimizer_whose_state_cannot_be_kept_trains_and_says_so(dataset, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(OptimizerStep, "state_dict", lambda self: ({"file": object()}, {}))
    host = stop(dataset, tmp_path, 4)
    assert "object cannot be kept), so a stopped run cannot go on exactly" in host.messages
    assert "start again with network_weights" in host.messages


def test_saving_states_takes_less_than_a_hundredth_of_the_time(tmp_path, monkeypatch):
    """The clock is a pretended one: copying a state takes one second, writing it two."""
    now = {"time": 0.0}
    monkeypatch.setattr(state_ring.time, "monotonic", lambda: now["time"])
    monkeypatch.setattr(state_ring.time, "thread_time", iter(range(0, 10**6, 2)).__next__)
    monkeypatch.setattr(state_ring, "write_state", lambda path, state: None)
    ring = state_ring.StateRing(tmp_path, interval=10.0)

    def copy() -> Any:
        now["time"] += 1
        return type("State", (), {"step": 1})()

    for _ in range(20_000):
        now["time"] += 1
        if ring._thread is not None:
            ring._thread.join()
        if ring.is_due():
            ring.start_writing(copy)
    ring.close()
    assert 0.003 < ring.seconds / now["time"] <= 0.011


def test_a_state_of_another_run_is_not_gone_on_from(dataset, tmp_path, monkeypatch):  # noqa: F811
    whole = train(dataset, tmp_path / "whole")
    run = kill(dataset, tmp_path / "one", 9, monkeypatch)
    other = kill(dataset, tmp_path / "two", 9, monkeypatch, seed=7)
    list_states(run / "state")[0].write_bytes(list_states(other / "state")[0].read_bytes())
    host = StoppingHost()
    assert_equal(train(dataset, tmp_path / "one", host), whole)
    assert "is a state of another run" in host.messages


def test_a_damaged_state_takes_no_good_one_s_place(dataset, tmp_path, monkeypatch):  # noqa: F811
    run = kill(dataset, tmp_path, 9, monkeypatch)
    list_states(run / "state")[0].write_bytes(b"")
    kill(dataset, tmp_path, 1, monkeypatch)
    states = list_states(run / "state")
    assert len(states) == 2 and all(read_state(path).step for path in states)


def stop_while(broken: str, data: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the run with the first call of a method of RunWriter, as a signal does. Its last state is
    kept, nothing else.
    """

    def fail(*_: object, **__: object) -> None:
        raise SystemExit(143)

    with monkeypatch.context() as cut, pytest.raises(SystemExit):
        cut.setattr(RunWriter, broken, fail)
        train(data, folder, ema_decay=0.9)


@pytest.mark.parametrize("broken", ["save_final", "_save_ema", "write_result"])
def test_a_run_that_is_ended_while_it_saves_loses_no_step(dataset, tmp_path, monkeypatch, broken):  # noqa: F811
    """Not even one that had no state yet: there is one every three minutes."""
    stop_while(broken, dataset, tmp_path, monkeypatch)
    host = StoppingHost()
    trained = train(dataset, tmp_path, host, ema_decay=0.9)
    assert not host.select(StepDone)
    assert_equal(trained, train(dataset, tmp_path / "whole", ema_decay=0.9))
    assert trained.path.name == "toy.safetensors", "the file that was saved before the end is this one"
    assert sorted(path.name for path in runs(tmp_path)[0].glob("*.safetensors")) == [
        "toy-ema.safetensors",
        "toy.safetensors",
    ]


def test_a_finished_run_has_its_whole_curve_before_it_is_marked(dataset, tmp_path, monkeypatch):  # noqa: F811
    seen = {}

    def look(folder: RunFolder, result: dict[str, Any]) -> None:
        rows = (folder.path / "loss.csv").read_text().splitlines()
        status = json.loads((folder.path / "progress.json").read_text())["status"]
        seen.update(rows=len(rows), plot=(folder.path / "loss.png").exists(), status=status)

    monkeypatch.setattr(RunFolder, "write_result", look)
    train(dataset, tmp_path)
    assert seen == {"rows": 13, "plot": True, "status": "finished"}


def test_an_average_that_could_not_be_saved_is_saved_by_the_next_start(dataset, tmp_path, monkeypatch):  # noqa: F811
    real = RunWriter._save_lora

    def fail(writer: RunWriter, path: Path, *given: Any) -> Any:
        if "-ema" in path.name:
            raise OSError(28, "the disk is full")
        return real(writer, path, *given)

    with monkeypatch.context() as full:
        full.setattr(RunWriter, "_save_lora", fail)
        host = StoppingHost()
        assert train(dataset, tmp_path, host, ema_decay=0.9).ema_path is None
        assert "Start the same again to save it" in host.messages
    again = train(dataset, tmp_path, ema_decay=0.9)
    assert again.ema_path.is_file() and again.path.name == "toy.safetensors"


# --- finish, pause, two processes ---


def test_finish_now_gives_the_lora_so_far(dataset, tmp_path):  # noqa: F811
    trained = train(dataset, tmp_path, StoppingHost(request="finish", after=5))
    assert trained.finished_early and trained.steps == len(trained.losses) == 5 and trained.path.is_file()
    (run,) = runs(tmp_path)
    assert json.loads((run / "manifest.json").read_text())["finished_early"] == {"step": 5, "total_steps": 12}
    assert json.loads((run / "result.json").read_text())["finished_early"] is True
    assert json.loads((run / "progress.json").read_text())["status"] == "finished early"
    again = train(dataset, tmp_path)
    assert again.was_loaded and again.finished_early and again.steps == 5
    host = StoppingHost()
    assert_equal(train(dataset, tmp_path, host, resume=run.name), train(dataset, tmp_path / "whole"))
    assert len(host.select(StepDone)) == 7


def test_finish_now_waits_for_the_first_step_that_learns(dataset, tmp_path):  # noqa: F811
    host = StoppingHost(request="finish", after=0)
    assert train(dataset, tmp_path, host, lr_warmup_steps=3.0).steps == 2
    assert "nothing is learned yet" in host.messages


@pytest.mark.parametrize("word", ["finish", "pause"])
def test_a_file_in_the_run_folder_asks(dataset, tmp_path, monkeypatch, word):  # noqa: F811
    monkeypatch.setattr("trainers.training.run_folder.SECONDS_BETWEEN_LOOKS", 0.0)  # the steps are very short

    class Asking(StoppingHost):
        def report(self, event: Any) -> None:
            super().report(event)
            if isinstance(event, StepDone) and event.step == 4:
                (runs(tmp_path)[0] / word).touch()

    if word == "finish":
        assert train(dataset, tmp_path, Asking()).steps == 4
    else:
        with pytest.raises(Paused, match="go on at step 4"):
            train(dataset, tmp_path, Asking())
        assert json.loads((runs(tmp_path)[0] / "progress.json").read_text())["status"] == "paused"
        assert_equal(train(dataset, tmp_path), train(dataset, tmp_path / "whole"))
    assert not (runs(tmp_path)[0] / word).exists()


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no SIGUSR1")
@pytest.mark.parametrize(("number", "request_"), [("SIGUSR1", "finish"), ("SIGUSR2", "pause")])
def test_signals_ask_on_the_command_line(number, request_):
    with ConsoleHost(torch.device("cpu"), quiet=True) as host:
        os.kill(os.getpid(), getattr(signal, number))
        assert host.take_request() == request_ and host.take_request() is None


def test_two_processes_do_not_train_one_run(dataset, tmp_path):  # noqa: F811
    stop(dataset, tmp_path, 4)
    (run,) = runs(tmp_path)
    assert not is_locked(run)
    with RunLock(run):
        assert is_locked(run)
        with pytest.raises(RunInUse, match="is being trained by another process"):
            train(dataset, tmp_path)
        assert train(dataset, tmp_path, resume="new").steps == 12
    assert not is_locked(run)


def test_a_signal_waits_for_the_end_of_an_update():
    done = []
    with pytest.raises(SystemExit), critical_section():
        raise_when_safe(SystemExit(143))
        done.append("the rest of the update")
    assert done
    with pytest.raises(SystemExit):
        raise_when_safe(SystemExit(143))


def test_a_signal_while_a_state_begins_to_be_written_loses_no_step(dataset, tmp_path, monkeypatch):  # noqa: F811
    steps, host, real = save_each_step(monkeypatch), StoppingHost(), threading.Thread.start

    def start_late(thread: threading.Thread) -> None:
        if len(host.select(StepDone)) == 5:
            raise_when_safe(SystemExit(143))
        real(thread)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(threading.Thread, "start", start_late)
        train(dataset, tmp_path, host, **steps)
    again = StoppingHost()
    assert_equal(train(dataset, tmp_path, again), train(dataset, tmp_path / "whole"))
    assert "at step 5" in again.messages


def test_a_signal_while_a_state_is_read_is_not_taken_for_damage(dataset, tmp_path, monkeypatch):  # noqa: F811
    stop(dataset, tmp_path, 5)

    def read(*_: Any) -> Any:
        raise_when_safe(SystemExit(143))

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(WeightFile, "_read", read)
        train(dataset, tmp_path)
    trained = train(dataset, tmp_path)
    assert_equal(trained, train(dataset, tmp_path / "whole"))
    assert len(list(runs(tmp_path)[0].glob("*.safetensors"))) == 1


@pytest.mark.parametrize("number", [1, 2, 4, 5])
def test_a_signal_while_the_average_is_put_in_place_leaves_no_mixture(number, monkeypatch):
    """At the first or second tensor, on the way there or back."""
    parameters = [torch.ones(3), torch.ones(2), torch.ones(1)]
    ema = AdapterEma([FlatWeights([nn.Parameter(each)]) for each in parameters], decay=0.9)
    for average in ema.averages:
        average.zero_()
    copied, real = [], torch.Tensor.copy_

    def copy_and_end(tensor: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        copied.append(source)
        if len(copied) == 2 * number:
            raise_when_safe(SystemExit(143))
        return real(tensor, source)

    monkeypatch.setattr(torch.Tensor, "copy_", copy_and_end)
    with pytest.raises(SystemExit), ema.in_place():
        pass
    assert all(bool((each == 1).all()) for each in parameters) and all(not each.any() for each in ema.averages)


def test_after_a_failure_inside_an_update_the_state_before_is_used(dataset, tmp_path, monkeypatch):  # noqa: F811
    """Half of an update is no state."""
    whole, real = train(dataset, tmp_path / "whole"), OptimizerStep.update
    steps = save_each_step(monkeypatch)

    def fail(self: OptimizerStep, step: int, loss: torch.Tensor) -> float:
        value = real(self, step, loss)
        if step == 8:
            raise RuntimeError("CUDA error")
        return value

    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="CUDA error"):
        broken.setattr(OptimizerStep, "update", fail)
        train(dataset, tmp_path, **steps)
    assert_equal(train(dataset, tmp_path), whole)


# --- memory ---


def test_when_memory_runs_out_the_run_steps_down_and_gives_the_same(dataset, tmp_path, monkeypatch):  # noqa: F811
    given = {"train_batch_size": 4, "max_train_steps": 6}
    whole = train(dataset, tmp_path / "whole", **given)
    real, checkpointing = PreparedToy.loss_terms, [True]
    monkeypatch.setattr(
        PreparedToy, "enable_gradient_checkpointing", lambda self: bool(checkpointing and checkpointing.pop())
    )

    def fit_one(self: PreparedToy, items: Any, step: int) -> Any:
        if step >= 3 and len(items) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, items, step)

    monkeypatch.setattr(PreparedToy, "loss_terms", fit_one)
    host = StoppingHost()
    trained = train(dataset, tmp_path, host, step_down_on_oom=True, **given)
    assert trained.losses == pytest.approx(whole.losses, rel=1e-5)
    assert "gradient_checkpointing is on from now on" in host.messages and "in 2 parts" in host.messages
    with pytest.raises(torch.OutOfMemoryError):
        train(dataset, tmp_path / "off", **given)


def test_when_nothing_smaller_is_left_the_error_stays(dataset, tmp_path, monkeypatch):  # noqa: F811
    def fail(self: PreparedToy, items: Any, step: int) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PreparedToy, "loss_terms", fail)
    with pytest.raises(torch.OutOfMemoryError):
        train(dataset, tmp_path, step_down_on_oom=True, train_batch_size=4)


def test_a_ctrl_c_that_got_lost_while_importing_stops_the_run(monkeypatch):
    """Python ignores what a signal handler raises inside some callbacks of an import."""
    monkeypatch.setattr(critical_section_module, "_is_interrupted", False)
    with ConsoleHost(torch.device("cpu"), quiet=True) as host:
        host.check_interrupted()
    critical_section_module.remember_interrupt()
    with ConsoleHost(torch.device("cpu"), quiet=True) as host, pytest.raises(Interrupted):
        host.check_interrupted()


def test_of_several_processes_only_the_main_one_copies_a_finished_lora(dataset, tmp_path):  # noqa: F811
    """The others would find its new name taken."""
    train(dataset, tmp_path)
    found = read_finished(runs(tmp_path)[0])
    assert found is not None
    first = load_finished(found, RunFolder(tmp_path, "other"), is_main=True)
    second = load_finished(found, RunFolder(tmp_path, "other"), is_main=False)
    assert first.path == tmp_path / "other.safetensors" and second.path == found.lora
    assert_equal(second, first)


def test_a_finished_run_is_found_by_its_own_name_first_and_copied_once_to_another(dataset, tmp_path):  # noqa: F811
    """The newest run of these settings is not x's: its LoRA would not have been x's file."""
    x = train(dataset, tmp_path, name="x", keep_inside=False)
    whole = train(dataset, tmp_path, name="whole", keep_inside=False, resume="new")
    assert x.path != whole.path and whole.path.name == "whole.safetensors"
    again = train(dataset, tmp_path, name="x", keep_inside=False)
    assert again.was_loaded and again.path == x.path
    copies = [train(dataset, tmp_path, name="copy", keep_inside=False) for _ in range(2)]
    assert all(copy.was_loaded and copy.path == tmp_path / "copy.safetensors" for copy in copies)
    (tmp_path / "copy.safetensors").write_bytes(b"somebody's")
    with pytest.raises(FileExistsError, match="exists already"):
        train(dataset, tmp_path, name="copy", keep_inside=False)


def test_a_longer_run_of_the_same_name_keeps_the_shorter_ones_lora(dataset, tmp_path):  # noqa: F811
    short = train(dataset, tmp_path, name="x", keep_inside=False, max_train_steps=6, lr_scheduler="constant")
    before = short.path.read_bytes()
    longer = train(dataset, tmp_path, name="x", keep_inside=False, max_train_steps=9, lr_scheduler="constant")
    assert longer.steps == 9 and longer.losses[:6] == short.losses
    assert longer.path != short.path and short.path.read_bytes() == before


def test_what_was_asked_of_a_run_that_had_ended_is_forgotten(dataset, tmp_path):  # noqa: F811
    stop(dataset, tmp_path, 4)
    (runs(tmp_path)[0] / "finish").touch()
    assert train(dataset, tmp_path).steps == 12
