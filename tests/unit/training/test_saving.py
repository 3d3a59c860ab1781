"""A run's work survives: errors, full disks, taken names and signals."""

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.training.test_loop import ListeningHost, dataset, train  # noqa: F401 (a fixture)
from trainers.training import run_writer
from trainers.training.events import CheckpointSaved, Notice, RunDescribed, StepDone
from trainers.training.live_status import LiveStatus
from trainers.training.loop import TrainingLoop
from trainers.training.run_folder import LossLog, RunFolder

FULL = OSError(errno.ENOSPC, "the disk is full")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The last places that a LoRA is rescued to."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path / "home"


def fail_in_step(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    real = TrainingLoop._compute_gradients

    def fail(self, step):
        if step.number == number:
            raise error
        return real(self, step)

    monkeypatch.setattr(TrainingLoop, "_compute_gradients", fail)


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("toy*.safetensors"))


def notices(host: ListeningHost) -> list[str]:
    return [event.message for event in host.select(Notice)]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error"),
        FULL,
        SystemExit(143),
        KeyboardInterrupt(),
        KeyError("a bug"),
        torch.OutOfMemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_ends_a_run_its_last_step_is_kept(dataset, tmp_path, monkeypatch, error):  # noqa: F811
    fail_in_step(monkeypatch, 4, error)
    with pytest.raises(type(error)) as raised:
        train(dataset, tmp_path)
    assert raised.value is error and saved(tmp_path) == ["toy-step00000003.safetensors"]


def test_an_error_before_anything_was_learned_stays_that_error_and_leaves_no_empty_lora(dataset, tmp_path, monkeypatch):  # noqa: F811
    """With a warm-up the first step has learning rate 0, so its LoRA is all zero."""
    fail_in_step(monkeypatch, 2, RuntimeError("CUDA error"))
    with pytest.raises(RuntimeError, match="CUDA error"):
        train(dataset, tmp_path, lr_warmup_steps=3.0, save_every_n_steps=1)
    assert saved(tmp_path) == []


def test_a_failure_of_the_emergency_save_does_not_hide_the_error(dataset, tmp_path, monkeypatch):  # noqa: F811
    fail_in_step(monkeypatch, 4, RuntimeError("CUDA error"))
    monkeypatch.setattr(run_writer, "save_lora", raising(FULL))
    host = ListeningHost()
    with pytest.raises(RuntimeError, match="CUDA error"):
        train(dataset, tmp_path, host)
    assert any(
        "weights of the last step could not be saved: " in text and "disk is full" in text for text in notices(host)
    )


def raising(error: BaseException):
    def fail(*_, **__):
        raise error

    return fail


def test_a_checkpoint_on_a_full_disk_is_a_notice_and_a_later_step_is_saved_instead(dataset, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(run_writer, "SECONDS_BETWEEN_TRIES", 0.0)
    real, host = run_writer.save_lora, ListeningHost()

    def full_until_step_four(path, *rest, **check):
        if len(host.select(StepDone)) < 4:
            raise FULL
        return real(path, *rest, **check)

    monkeypatch.setattr(run_writer, "save_lora", full_until_step_four)
    trained = train(dataset, tmp_path, host, save_every_n_steps=3)
    assert saved(tmp_path) == ["toy-step00000004.safetensors", "toy.safetensors"] and trained.steps == 6
    assert [event.step for event in host.select(CheckpointSaved)] == [4]
    assert any("the checkpoint could not be written" in text for text in notices(host))


@pytest.mark.parametrize("is_run_folder_full", [False, True])
def test_a_lora_that_its_folder_cannot_take_goes_to_another_place(
    dataset,  # noqa: F811
    tmp_path,
    monkeypatch,
    home,
    is_run_folder_full,
):
    real, host, output = run_writer.save_lora, ListeningHost(), tmp_path / "output"

    def full(path, *rest, **check):
        if path.parent == output or (is_run_folder_full and output in path.parents):
            raise FULL
        return real(path, *rest, **check)

    monkeypatch.setattr(run_writer, "save_lora", full)
    trained = train(dataset, output, host)
    folder = home / "lora_trainer_rescued" if is_run_folder_full else next((output / "runs").iterdir())
    assert trained.path == folder / "toy.safetensors" and trained.path.is_file()
    assert any(f"The LoRA was saved as {trained.path} instead" in text for text in notices(host))


def test_plot_log_and_samples_that_cannot_be_written_stop_nothing(dataset, tmp_path, monkeypatch):  # noqa: F811
    for owner, name in ((RunFolder, "write_loss_plot"), (RunFolder, "write_samples"), (LossLog, "add")):
        monkeypatch.setattr(owner, name, raising(FULL))
    host = ListeningHost()
    trained = train(dataset, tmp_path, host, sample_every_n_steps=3)
    assert trained.path is not None and trained.path.is_file()
    for what in ("the loss curve", "loss.csv", "the samples"):
        assert any(f"{what} could not be written" in text for text in notices(host))
    assert sum("loss.csv" in text for text in notices(host)) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a file on a disk that is always full")
def test_a_log_on_a_full_disk_stops_nothing(dataset, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(RunFolder, "log_path", Path("/dev/full"))
    trained = train(dataset, tmp_path, ListeningHost())
    assert trained.path is not None and trained.path.is_file()


def test_of_two_runs_with_one_name_each_keeps_its_lora(dataset, tmp_path, monkeypatch):  # noqa: F811
    """The other run takes the name between the look and the act."""
    real = run_writer.save_lora

    def too_late(path, *rest, **check):
        if path.name == "toy.safetensors":
            path.write_bytes(b"the other run's")
            raise FileExistsError(f"{path} exists already")
        return real(path, *rest, **check)

    monkeypatch.setattr(run_writer, "save_lora", too_late)
    trained = train(dataset, tmp_path)
    assert (
        trained.path == tmp_path / "toy-2.safetensors"
        and (tmp_path / "toy.safetensors").read_bytes() == b"the other run's"
    )
    assert trained.metadata["ss_output_name"] == "toy-2"


def test_a_lora_that_fails_its_check_gets_no_name(dataset, tmp_path, monkeypatch):  # noqa: F811
    """As fp16 weights that came out all zero."""
    monkeypatch.setattr(run_writer, "verify_lora", raising(RuntimeError("all up weights are zero")))
    with pytest.raises(RuntimeError, match="all up weights are zero"):
        train(dataset, tmp_path)
    found = [path for path in tmp_path.rglob("*") if path.suffix in (".safetensors", ".tmp")]
    assert [path.parent.name for path in found] == ["state"]


def test_the_saved_file_holds_what_is_handed_over(dataset, tmp_path):  # noqa: F811
    trained = train(dataset, tmp_path)
    found = load_file(trained.path)
    assert found.keys() == trained.state_dict.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in trained.state_dict.items())


def test_rows_that_a_full_disk_refused_are_written_at_the_end(dataset, tmp_path, monkeypatch):  # noqa: F811
    real = LossLog.add

    def refuse_one(log, event):
        if event.step == 3:
            raise OSError(28, "No space left on device")
        real(log, event)

    monkeypatch.setattr(LossLog, "add", refuse_one)
    trained = train(dataset, tmp_path)
    (path,) = tmp_path.glob("runs/*/loss.csv")
    rows = [row.split(",") for row in path.read_text().splitlines()[1:]]
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert [float(row[2]) for row in rows] == trained.losses


def test_a_status_that_a_full_disk_refused_leaves_no_temporary_file(dataset, tmp_path, monkeypatch):  # noqa: F811
    def refuse(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainers.training.live_status.os.replace", refuse)
    status = LiveStatus()
    status.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_was_given_is_no_notice(tmp_path):
    """The panel shows notices above everything else."""
    status = LiveStatus()
    status.add(RunDescribed("1000 steps, rank 16.\n21.3 GB free.", 2**30))
    status.add(Notice("3 images are enlarged"))
    status.open(tmp_path)
    written = json.loads((tmp_path / "progress.json").read_text())
    assert written["notices"] == ["3 images are enlarged"]
    assert written["settings"] == "1000 steps, rank 16.\n21.3 GB free." and written["memory_budget_bytes"] == 2**30


def test_a_log_that_cannot_begin_names_its_file(dataset, tmp_path, monkeypatch):  # noqa: F811
    def refuse(self, stream, rows=()):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LossLog, "__init__", refuse)
    with pytest.raises(OSError, match="No space left") as found:
        train(dataset, tmp_path)
    assert found.value.filename.endswith("loss.csv")
