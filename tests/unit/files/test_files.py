"""Files: whole or not at all, never over another, and names that every system takes."""

import errno
import json
import logging
import os
import re

import pytest
import torch

from trainers.files.atomic_write import atomic_write
from trainers.files.names import check_output_name
from trainers.files.tensor_cache import TensorCache, content_key
from trainers.training.events import Interrupted, StepDone
from trainers.training.loss_plot import draw_loss_plot, running_average
from trainers.training.run_folder import RunFolder


def test_a_file_gets_its_name_only_when_it_is_whole(tmp_path):
    with atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "half"


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), Interrupted()])
def test_an_error_or_interrupt_leaves_nothing_behind(tmp_path, error):
    with pytest.raises(type(error)), atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_not_overwritten(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(FileExistsError, match=r"exists already\. Choose another name"), atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_system_without_hard_links_is_served_too(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "not supported")

    monkeypatch.setattr(os, "link", no_links)
    with atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_full_disk_is_named_with_its_remedy(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"a\.txt: the disk is full\. Free some space"), atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../evil", "a/b", "a\\b", "C:", "what?", "nul", "COM1.x", "", " ", ".", "..", "name.", " name", "x" * 300, "a\nb"])
def test_a_name_with_a_folder_or_reserved_characters_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="output name"):
        RunFolder(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_a_good_name_stays_as_it_is():
    assert check_output_name("my LoRA v2 (final).safetensors") == "my LoRA v2 (final)"
    assert check_output_name("模型") == "模型"


def test_a_run_that_would_overwrite_a_lora_is_refused_before_it_starts(tmp_path):
    (tmp_path / "x.safetensors").write_text("old")
    with pytest.raises(FileExistsError, match="Choose another output name"):
        RunFolder(tmp_path, "x")


def test_two_runs_of_one_name_in_the_same_second_get_two_folders(tmp_path):
    first = RunFolder(tmp_path, "x")
    first.create({})
    second = RunFolder(tmp_path, "x")
    second.create({})
    assert first.path != second.path


def test_a_run_folder_holds_manifest_loss_and_log(tmp_path):
    run = RunFolder(tmp_path, "x")
    run.create({"training": {"rank": 8}})
    with run.log() as log:
        log.add(StepDone(1, 2, 1, 0.5, 0.5, 1e-4, 3.0, 0.3, 0))
        logging.getLogger("trainers.sdxl").warning("something to know")
    run.write_loss_plot([0.5])
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["training"] == {"rank": 8} and manifest["versions"]["torch"]
    assert (run.path / "loss.csv").read_text().splitlines()[1] == "1,1,0.5,0.5,0.0001,3"
    assert "something to know" in (run.path / "run.log").read_text()
    assert (run.path / "loss.png").stat().st_size > 1000


def test_checkpoints_are_named_as_sd_scripts_names_them(tmp_path):
    run = RunFolder(tmp_path, "x")
    assert run.checkpoint_path(step=100).name == "x-step00000100.safetensors"
    assert run.checkpoint_path(step=100, epoch=2).name == "x-000002.safetensors"


def test_the_running_average_starts_at_the_first_loss_and_settles():
    averages = running_average([1.0] + [0.0] * 200)
    assert averages[0] == 1.0 and averages[-1] < 0.01


@pytest.mark.parametrize("losses", [[], [0.1], [0.0, 0.0], [0.1] * 50 + [1e6] + [0.1] * 50])
def test_any_losses_can_be_plotted(losses):
    assert draw_loss_plot(losses).size == (900, 420)


def test_a_cache_returns_what_was_put_and_keeps_it_on_disk(tmp_path):
    tensor = torch.arange(6.0).reshape(2, 3)
    key = content_key(picture="abc", crop=(1, 2))
    TensorCache(tmp_path).put(key, {"latents": tensor.T})
    assert torch.equal(TensorCache(tmp_path).get(key)["latents"], tensor.T)
    assert TensorCache(tmp_path).get(content_key(picture="abc", crop=(1, 3))) is None


def test_a_damaged_cache_file_is_reported_and_computed_again(tmp_path, caplog):
    key = content_key(picture="abc")
    TensorCache(tmp_path).put(key, {"latents": torch.zeros(1000)})
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:500])
    assert TensorCache(tmp_path).get(key) is None
    assert re.search("unreadable cache file", caplog.text)


def test_a_cache_without_a_folder_lives_in_memory_only():
    cache = TensorCache(None)
    cache.put("k", {"a": torch.ones(1)})
    assert cache.get("k") is not None and TensorCache(None).get("k") is None


def test_what_does_not_fit_into_memory_is_read_from_the_disk_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.files.tensor_cache.MAX_BYTES_IN_MEMORY", 1000)
    for cache in (TensorCache(tmp_path), TensorCache(tmp_path)):  # the second one finds all on the disk
        for number in range(5):
            if cache.get(f"k{number}") is None:
                cache.put(f"k{number}", {"latents": torch.full((100,), float(number))})
        assert sum(tensors["latents"].nbytes for tensors in cache._in_memory.values()) == 800
        assert [float(cache.get(f"k{number}")["latents"][0]) for number in range(5)] == [0, 1, 2, 3, 4]
