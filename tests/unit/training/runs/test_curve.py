"""The curve of a run as few points, read as it grows."""

import csv
import tracemalloc
from pathlib import Path

import pytest

from tests.run_folders import write_losses
from trainers.training.runs import curve as curve_module
from trainers.training.runs.curve import MAX_BINS, LossCurve


def read(path: Path, max_points: int = 300) -> tuple[LossCurve, curve_module.CurvePoints]:
    curve = LossCurve(path / "loss.csv")
    curve.refresh()
    return curve, curve.points(max_points)


def test_few_steps_are_given_one_by_one(tmp_path: Path):
    write_losses(tmp_path, [0.5, 0.25, 0.75], total=3)
    _, points = read(tmp_path)
    assert points.step == [1, 2, 3] and points.loss == points.low == points.high == [0.5, 0.25, 0.75]
    assert points.average == pytest.approx([0.5, 0.375, 0.5]) and len(points.learning_rate) == 3


@pytest.mark.parametrize("num_steps", [299, 300, 301, 5_000, 12_345])
def test_many_steps_keep_their_mean_their_extremes_and_their_last_step(tmp_path: Path, num_steps: int):
    losses = [0.1 + (step * 7919 % 1000) / 1000 for step in range(num_steps)]
    losses[num_steps // 2] = 9.0
    (tmp_path / "loss.csv").write_text(
        "step,epoch,loss,average_loss,learning_rate,steps_per_second\n"
        + "".join(f"{step},1,{loss},{loss},,\n" for step, loss in enumerate(losses, start=1))
    )
    _, points = read(tmp_path)
    assert 150 < len(points.step) <= 300 and points.step[-1] == num_steps and points.step == sorted(set(points.step))
    assert max(points.high) == 9.0 and min(points.low) == pytest.approx(min(losses))
    widths = [last - first for first, last in zip([0, *points.step], points.step, strict=False)]
    mean = sum(width * loss for width, loss in zip(widths, points.loss, strict=True)) / num_steps
    assert mean == pytest.approx(sum(losses) / num_steps, rel=1e-4)
    assert points.learning_rate == [None] * len(points.step)


def test_only_what_is_new_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_losses(tmp_path, [0.5] * 5_000, total=6_000)
    curve, _ = read(tmp_path)
    lines: list[bytes] = []
    add_line = curve._add_line
    monkeypatch.setattr(curve, "_add_line", lambda line: (lines.append(line), add_line(line)))
    with open(tmp_path / "loss.csv", "a") as stream:
        stream.write("5001,1,0.25,0.25,0.0001,1\n5002,1,0.1")  # the second line is not complete
    curve.refresh()
    assert lines == [b"5001,1,0.25,0.25,0.0001,1"] and curve.last_step == 5001
    with open(tmp_path / "loss.csv", "a") as stream:
        stream.write("25,0.1,0.0001,1\n")
    curve.refresh()
    assert curve.last_step == 5002 and curve.points(MAX_BINS).loss[-1] == 0.1875
    assert curve.num_unreadable == 0


def test_what_was_read_in_parts_equals_what_is_read_at_once(tmp_path: Path):
    losses = [0.1 + step % 97 / 100 for step in range(4_321)]
    write_losses(tmp_path, losses, total=5_000)
    content = (tmp_path / "loss.csv").read_bytes()
    (tmp_path / "loss.csv").write_bytes(b"")
    growing = LossCurve(tmp_path / "loss.csv")
    for start in range(0, len(content), 7_777):
        with open(tmp_path / "loss.csv", "ab") as stream:
            stream.write(content[start : start + 7_777])
        growing.refresh()
    _, expected = read(tmp_path)
    assert growing.points(300) == expected


def test_a_file_that_became_another_one_is_read_again(tmp_path: Path):
    write_losses(tmp_path, [0.5] * 100, total=200)
    curve, _ = read(tmp_path)
    write_losses(tmp_path, [0.25] * 200, total=200)  # in place, and longer than before
    curve.refresh()
    assert curve.points(300).loss == [0.25] * 200
    (tmp_path / "loss.csv").unlink()
    curve.refresh()
    assert curve.points(300).step == []


def test_lines_that_are_none_are_counted_and_left_out(tmp_path: Path):
    rows = ["step,epoch,loss,average_loss,learning_rate,steps_per_second", "1,1,0.5,0.5,,", "", "2,1,nan,0.5,,"]
    rows += ["what?", "\ufffd,\0,,", "1,1,0.4,0.4,,", "9" * 30 + ",1,0.4,0.4,,", "3,1,0.3,,inf,2"]
    (tmp_path / "loss.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    curve, points = read(tmp_path)
    assert points.step == [1, 3] and points.average == [0.5, None] and points.learning_rate == [None, None]
    assert curve.num_unreadable == 5


@pytest.mark.parametrize("content", [b"", b"\n\n\n", b"step,loss", bytes(range(256)) * 50, b"x" * 3_000_000])
def test_a_file_without_losses_gives_no_points(tmp_path: Path, content: bytes):
    (tmp_path / "loss.csv").write_bytes(content)
    assert read(tmp_path)[1].step == []


def test_a_long_run_takes_no_more_memory_than_a_short_one(tmp_path: Path):
    with open(tmp_path / "loss.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["step", "epoch", "loss", "average_loss", "learning_rate", "steps_per_second"])
        writer.writerows((step, 1, 0.5, 0.5, 1e-4, 2) for step in range(1, 20_001))
    tracemalloc.start()
    curve, points = read(tmp_path)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(curve._bins) <= MAX_BINS and held < 2 * 2**20 and points.step[-1] == 20_000
