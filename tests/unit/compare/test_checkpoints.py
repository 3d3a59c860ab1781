"""Which LoRAs a run has, and in which order; which files are refused."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainers.compare.checkpoints import Checkpoint, find_run, list_run_checkpoints, read_checkpoint

RUN = "anna-20260901-120000"


def write_lora(path: Path, *, steps: int | None = None, trigger: str = "zwx") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = {} if steps is None else {"ss_steps": str(steps)}
    save_file({"a.alpha": torch.tensor(1.0)}, path, {**entries, "modelspec.trigger_phrase": trigger})
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Epoch 2 is step 40, between two checkpoints by steps."""
    folder = tmp_path / "runs" / RUN
    for name, steps in (("step00000100", 100), ("step00000025", 25), ("000002", 40)):
        write_lora(folder / "checkpoints" / f"anna-{name}.safetensors", steps=steps)
    return folder


def list_names(run: Path) -> list[str]:
    return [checkpoint.name for checkpoint in list_run_checkpoints(run)]


def test_checkpoints_are_in_the_order_of_steps(run: Path):
    assert list_names(run) == ["step 25", "step 40", "step 100"]
    first = list_run_checkpoints(run)[0]
    assert first == Checkpoint(
        "step 25", run / "checkpoints" / "anna-step00000025.safetensors", trigger_word="zwx", num_steps=25
    )


def test_the_final_lora_is_last_and_stands_for_a_checkpoint_of_its_step(run: Path):
    write_lora(run / "anna.safetensors", steps=120)
    assert list_names(run) == ["step 25", "step 40", "step 100", "final, step 120"]
    write_lora(run / "checkpoints" / "anna-step00000120.safetensors", steps=120)
    assert list_names(run) == ["step 25", "step 40", "step 100", "final, step 120"]


def test_result_json_names_the_final_lora_of_the_command_line_the_best_and_the_averaged_one(run: Path):
    final = write_lora(run.parent.parent / "anna.safetensors", steps=120)
    averaged = write_lora(run.parent.parent / "anna-ema.safetensors", steps=120)
    best = run / "checkpoints" / "anna-step00000100.safetensors"
    result = {"path": str(final), "ema_path": str(averaged), "best": {"step": 100, "path": str(best), "loss": 0.1}}
    (run / "result.json").write_text(json.dumps(result))
    assert list_names(run) == ["step 25", "step 40", "step 100 (best)", "final, step 120", "final, EMA"]


def test_a_result_that_names_files_that_are_gone_is_no_error(run: Path):
    (run / "result.json").write_text(json.dumps({"path": "/nowhere/x.safetensors", "best": None, "ema_path": None}))
    assert list_names(run) == ["step 25", "step 40", "step 100"]
    (run / "result.json").write_text("{")
    with pytest.raises(ValueError, match=r"result\.json: not valid JSON"):
        list_run_checkpoints(run)


def test_the_paths_of_a_result_must_be_allowed(run: Path):
    (run / "result.json").write_text(json.dumps({"path": "/etc/secret.safetensors"}))

    def refuse(name: str) -> Path:
        raise ValueError(f"{name} is refused")

    with pytest.raises(ValueError, match=r"/etc/secret\.safetensors is refused"):
        list_run_checkpoints(run, require=refuse)


def test_checkpoints_of_other_programs_have_the_steps_of_their_names_or_none(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    for name in ("x-step00000010", "x-step00000002"):
        save_file({"a": torch.zeros(1)}, write_lora(folder / f"{name}.safetensors"))
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert list_names(tmp_path) == ["step 2", "step 10", "final, x"]


def test_a_run_is_found_by_its_name_its_folder_and_the_paths_in_it(run: Path):
    runs = run.parent
    checkpoint = run / "checkpoints" / "anna-step00000100.safetensors"
    for name in (RUN, str(run), str(checkpoint), str(run / "anna.safetensors"), str(run / "checkpoints")):
        assert find_run(runs, name) == run


def test_an_unknown_run_is_an_error_that_names_the_newest(run: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=rf"bob: there is no such run in .*runs\. The newest are {RUN}"):
        find_run(run.parent, "bob")
    with pytest.raises(ValueError, match=r"bob: there is no such run in .*empty\. There are none yet"):
        find_run(tmp_path / "empty", "bob")
    with pytest.raises(ValueError, match="/nowhere/bob: there is no such run"):
        find_run(run.parent, "/nowhere/bob")


def test_a_folder_above_an_allowed_one_is_not_looked_at(tmp_path: Path):
    allowed = tmp_path / "checkpoints"
    allowed.mkdir()

    def require(name: str) -> Path:
        if not Path(name).is_relative_to(allowed):
            raise ValueError(f"{name} is refused")
        return Path(name)

    with pytest.raises(ValueError, match="is refused"):
        find_run(tmp_path / "runs", str(allowed), require=require)


def test_a_run_without_a_lora_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="this run has no LoRA yet"):
        list_run_checkpoints(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.pt", b"", "x.pt: only .safetensors files are compared"),
        ("x.safetensors", None, "x.safetensors: there is no such file"),
        ("x.safetensors", b"no weights", "x.safetensors: not a whole .safetensors file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, content: bytes | None, message: str):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_checkpoint(tmp_path / name)
