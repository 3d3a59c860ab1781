"""The GPU check on the CPU, at tiny size: every section runs, and its file and the page tell what
it found. tests/pretend_gpu runs it on the pretended GPU, tests/host with a ComfyUI.
"""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.gpu_check.__main__ import SECONDS, main, plan_deadlines, run_section
from benchmarks.gpu_check.bench import Bench
from benchmarks.gpu_check.report import Report, Skipped
from benchmarks.gpu_check.sections import SECTIONS
from benchmarks.gpu_check.table import COLUMNS, make_page
from benchmarks.gpu_check.trial import OutOfTime

HERE = [section.NAME for section in SECTIONS if section.NAME != "comfyui"]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gpu_check")
    command = [str(folder), "--device", "cpu", "--tiny", "--seconds", "100000"]
    assert main([*command, "--sections", *HERE]) == 0
    return folder


@pytest.fixture(scope="module")
def reports(out: Path) -> dict[str, dict]:
    return {section.NAME: json.loads((out / f"{section.NAME}.json").read_text()) for section in SECTIONS}


@pytest.mark.parametrize("name", HERE)
def test_a_section_is_ok_and_what_it_leaves_out_has_a_reason(reports, name: str):
    report = reports[name]
    assert report["status"] == "ok", report["reason"]
    assert report["checks"] and all(check["ok"] and check["goal"] for check in report["checks"])
    assert all(part["part"] and part["reason"] for part in report["skipped"])
    assert report["seconds"] > 0


def test_a_section_that_was_not_chosen_says_so(reports):
    assert (reports["comfyui"]["status"], reports["comfyui"]["reason"]) == ("skipped", "not among --sections")


def test_each_section_measures_what_its_tables_show(reports):
    columns = {name: {column for row in report["rows"] for column in row} for name, report in reports.items()}
    assert {"model", "unet", "seconds_to_device"} <= columns["models"]
    assert {"card", "preset", "training GB", "estimated training GB", "samples"} <= columns["memory"]
    speed = {"matrix_rate_tflops", "trainer_seconds", "bare_loop_seconds", "peft_loop_seconds", "share_of_matrix_rate"}
    assert speed <= columns["speed"]
    assert all(row["samples"] >= 2 for row in reports["memory"]["rows"])


def test_a_cpu_leaves_out_what_only_a_gpu_can_tell(reports):
    left_out = {part["part"] for report in reports.values() for part in report["skipped"]}
    assert {"too little memory", "kernels per step", "full-size model"} <= left_out


def test_the_page_has_a_table_of_all_sections_and_the_machine(out: Path, reports):
    page = (out / "report.md").read_text()
    assert "| " + " | ".join(COLUMNS) + " |" in page
    assert all(f"| {report['title']} | {report['status']} |" in page for report in reports.values())
    assert "- missing: " in page and json.loads((out / "machine.json").read_text())["device"] == "cpu"


# ---- without a run ----


def make_section(run, **settings) -> SimpleNamespace:
    return SimpleNamespace(
        **{"NAME": "it", "TITLE": "It", "SHARE_SECONDS": 1.0, "NEEDED_SECONDS": 60.0, **settings}, run=run
    )


def run_alone(folder: Path, run, *, seconds: float = 100.0) -> dict:
    bench = SimpleNamespace(is_tiny=False, out=folder, free=lambda: None)
    run_section(make_section(run), bench, time.monotonic() + seconds, is_chosen=True)
    return json.loads((folder / "it.json").read_text())


def test_the_file_tells_what_a_cut_run_knew(tmp_path: Path):
    report = Report("it", "It", tmp_path)
    report.check("speed", True, value=float("nan"), goal="fast")
    report.add_row(seconds=1.23456789)
    found = json.loads((tmp_path / "it.json").read_text())
    assert (found["status"], found["checks"][0]["value"], found["rows"]) == ("running", "nan", [{"seconds": 1.23457}])


def test_a_goal_that_is_not_reached_fails_the_section(tmp_path: Path):
    found = run_alone(tmp_path, lambda bench, report: report.check_most("difference", 0.2, 0.1))
    assert (found["status"], found["reason"]) == ("failed", "not reached: difference")


def test_a_nan_reaches_no_goal(tmp_path: Path):
    found = run_alone(tmp_path, lambda bench, report: report.check_most("difference", float("nan"), 0.1))
    assert found["status"] == "failed"


def test_an_unexpected_error_is_kept_with_its_traceback(tmp_path: Path):
    def fail(bench: Bench, report: Report) -> None:
        raise ZeroDivisionError("no kernel")

    found = run_alone(tmp_path, fail)
    assert (found["status"], found["reason"]) == ("error", "ZeroDivisionError: no kernel")
    assert "in fail" in found["error"]
    assert "ZeroDivisionError: no kernel" in make_page([found], {})


def test_a_section_without_enough_time_is_skipped_with_the_reason(tmp_path: Path):
    found = run_alone(tmp_path, lambda bench, report: report.check("never", True, value=1, goal="1"), seconds=30.0)
    assert found["status"] == "skipped" and "it takes about 60 s" in found["reason"]


def test_a_run_that_meets_its_deadline_keeps_its_checks(tmp_path: Path):
    def stop(bench: Bench, report: Report) -> None:
        report.check("first", True, value=1, goal="1")
        raise OutOfTime("the section's time is used up")

    found = run_alone(tmp_path, stop)
    assert (found["status"], found["skipped"][0]["part"]) == ("ok", "the rest")


def test_a_section_that_cannot_run_says_why(tmp_path: Path):
    def refuse(bench: Bench, report: Report) -> None:
        raise Skipped("no ComfyUI")

    found = run_alone(tmp_path, refuse)
    assert (found["status"], found["reason"]) == ("skipped", "no ComfyUI")


def test_the_shares_of_all_sections_are_the_whole_time():
    deadlines = plan_deadlines(SECTIONS, SECONDS, begin=1000.0)
    assert deadlines[-1] == pytest.approx(1500.0) and deadlines == sorted(deadlines)
    assert sum(section.SHARE_SECONDS for section in SECTIONS) == SECONDS
    assert all(section.NEEDED_SECONDS <= section.SHARE_SECONDS for section in SECTIONS)


def test_the_full_size_model_on_a_cpu_is_refused(tmp_path: Path, capsys):
    assert main([str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert "Add --tiny" in capsys.readouterr().err and not (tmp_path / "out").exists()
