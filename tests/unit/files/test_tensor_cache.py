"""Caching tensors on disk and in memory."""

import os
import re

import pytest
import torch
from safetensors.torch import load, save

from trainers.files.tensor_cache import TensorCache, content_key


def test_a_cache_returns_its_entries_and_keeps_them_on_disk(tmp_path):
    tensor = torch.arange(6.0).reshape(2, 3)
    key = content_key(image="abc", crop=(1, 2))
    TensorCache(tmp_path).put(key, {"latents": tensor.T})
    assert torch.equal(TensorCache(tmp_path).get(key)["latents"], tensor.T)
    assert TensorCache(tmp_path).get(content_key(image="abc", crop=(1, 3))) is None


def test_a_damaged_cache_file_is_reported_and_computed_again(tmp_path, caplog):
    key = content_key(image="abc")
    TensorCache(tmp_path).put(key, {"latents": torch.zeros(1000)})
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:500])
    assert TensorCache(tmp_path).get(key) is None
    assert re.search("unreadable cache file", caplog.text)


@pytest.mark.parametrize("damage", ["bit", "renamed", "without checksum"])
def test_an_entry_that_is_valid_but_not_what_was_written_is_computed_again(tmp_path, caplog, damage):
    key, other = content_key(image="abc"), content_key(image="abd")
    TensorCache(tmp_path).put(key, {"latents": torch.ones(1000)})
    (path,) = tmp_path.rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "bit":
        content[-100] ^= 1
    if damage == "without checksum":
        content = bytearray(save(load(bytes(content))))
    wanted = other if damage == "renamed" else key
    target = tmp_path / wanted[:2] / f"{wanted}.safetensors"
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(content)
    assert TensorCache(tmp_path).get(wanted) is None
    assert ("its checksum is wrong" in caplog.text) == (damage != "without checksum")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8, torch.bool])
def test_every_type_and_an_empty_tensor_have_a_checksum(tmp_path, dtype):
    TensorCache(tmp_path).put("key", {"a": torch.ones(3, 2).to(dtype), "b": torch.ones(0), "c": torch.ones(())})
    found = TensorCache(tmp_path).get("key")
    assert found is not None and torch.equal(found["a"], torch.ones(3, 2).to(dtype)) and set(found) == {"a", "b", "c"}


def test_only_old_temporary_files_of_ours_are_swept(tmp_path):
    folder = tmp_path / "ab"
    folder.mkdir()
    names = [".abc.safetensors.a1b2c3_d.tmp", ".abc.safetensors.zzzzzzzz.tmp", ".notes.tmp", "abc.safetensors"]
    for name in names:
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (0, 0))
    os.utime(folder / names[1])
    TensorCache(tmp_path).put("key", {"a": torch.ones(1)})
    assert sorted(path.name for path in folder.iterdir()) == sorted(names[1:])


def test_a_cache_without_a_folder_stays_in_memory():
    cache = TensorCache(None)
    cache.put("k", {"a": torch.ones(1)})
    assert cache.get("k") is not None and TensorCache(None).get("k") is None


def test_tensors_that_do_not_fit_into_memory_are_read_from_disk_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.files.tensor_cache.MAX_BYTES_IN_MEMORY", 1000)
    for cache in (TensorCache(tmp_path), TensorCache(tmp_path)):  # the second run finds everything on disk
        for number in range(5):
            if cache.get(f"k{number}") is None:
                cache.put(f"k{number}", {"latents": torch.full((100,), float(number))})
        assert sum(tensors["latents"].nbytes for tensors in cache._in_memory.values()) == 800
        assert [float(cache.get(f"k{number}")["latents"][0]) for number in range(5)] == [0, 1, 2, 3, 4]
