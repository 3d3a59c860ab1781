"""Caching tensors on disk and in memory."""

import re

import torch

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
