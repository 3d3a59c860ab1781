"""Weights are read, not mapped: a file that changes is an error, never the end of the process."""

import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from trainers.files.weight_file import ChangedFile, open_weights, read_weights

TENSORS = {
    "matrix": torch.arange(6.0).reshape(2, 3),
    "bf16": torch.arange(8).to(torch.bfloat16),
    "number": torch.tensor(7, dtype=torch.int64),
    "nothing": torch.zeros(0, 4, dtype=torch.float16),
    "switch": torch.tensor([True, False]),
    "eight": torch.ones(3).to(torch.float8_e4m3fn),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"a": "b"})
    return tmp_path / "x.safetensors"


def test_all_tensors_and_the_metadata_come_as_they_were_written(path: Path):
    tensors, metadata = read_weights(path)
    assert metadata == {"a": "b"} and tensors.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        found = tensors[name]
        assert found.dtype == expected.dtype and found.shape == expected.shape
        assert torch.equal(found.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8))


def test_facts_and_single_tensors_can_be_read(path: Path):
    with open_weights(path) as file:
        assert file.get_shapes(["matrix", "number"]) == {"matrix": (2, 3), "number": ()}
        assert file.get_dtypes(["bf16"]) == {"bf16": "BF16"}
        assert list(file.read(["number", "bf16"])) == ["number", "bf16"]


def test_tensors_that_were_read_outlive_a_file_that_is_cut(path: Path):
    tensors, _ = read_weights(path)
    os.truncate(path, 0)
    assert torch.equal(tensors["matrix"], TENSORS["matrix"])


def test_a_file_that_is_cut_while_it_is_read_is_an_error(path: Path):
    message = r"x\.safetensors was changed while it was read\. Wait until"
    with pytest.raises(ChangedFile, match=message), open_weights(path) as file:
        os.truncate(path, 8)
        file.read(["matrix"])


@pytest.mark.parametrize("change", ["written", "replaced", "removed"])
def test_a_file_that_changes_while_it_is_read_is_an_error(path: Path, change: str):
    with pytest.raises(ChangedFile), open_weights(path) as file:
        file.read(["matrix"])
        if change == "written":
            os.utime(path, ns=(1, 1))
        elif change == "replaced":
            path.with_name("y").write_bytes(path.read_bytes())
            os.replace(path.with_name("y"), path)
        else:
            path.unlink()


def test_another_error_is_not_hidden(path: Path):
    with pytest.raises(KeyError), open_weights(path) as file:
        file.read(["unknown"])


def test_a_file_that_is_not_whole_is_an_error(path: Path):
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SafetensorError):
        read_weights(path)
