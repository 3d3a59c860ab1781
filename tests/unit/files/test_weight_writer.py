"""Files that are written block by block: equal to the library's."""

import json

import pytest
import torch
from safetensors.torch import load, save

from trainers.files.weight_writer import cut, holds, lay_out

METADATA = {"ss_network_dim": "4", "ss_training_comment": 'café "quoted"\n日本語 \x01', "modelspec.title": "x"}
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


def _make_tensors() -> dict[str, torch.Tensor]:
    """One of each type, and a few shapes, in no order."""
    tensors = {f"{name}.{dtype}": torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES for name in "ba"}
    return {**tensors, "scalar": torch.tensor(2.0), "empty": torch.zeros(0, 3)}


def test_a_file_is_that_of_the_library_but_for_the_order_of_metadata():
    content, expected = b"".join(lay_out(_make_tensors(), METADATA)), save(_make_tensors(), METADATA)
    start, expected_start = (8 + int.from_bytes(each[:8], "little") for each in (content, expected))
    assert start % 8 == 0
    assert content[start:] == expected[expected_start:]
    assert json.loads(content[8:start]) == json.loads(expected[8:expected_start])
    loaded = load(content)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in _make_tensors().items())


def test_the_same_content_gives_the_same_file_whatever_its_order():
    tensors = _make_tensors()
    backwards = [dict(reversed(each.items())) for each in (tensors, METADATA)]
    assert b"".join(lay_out(tensors, METADATA)) == b"".join(lay_out(*backwards))


@pytest.mark.parametrize(("start", "size"), [(0, 4), (2, 5), (3, 0), (8, 9), (11, 3)])
def test_a_cut_is_that_of_the_whole(start, size):
    blocks = [b"abc", memoryview(b"defgh"), b"", b"ijk"]
    assert cut(blocks, start, size) == b"abcdefghijk"[start : start + size]


@pytest.mark.parametrize("content", [b"abcdeX", b"abcde", b"abcdefg", b""])
def test_a_file_that_differs_is_found(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert not holds(path, [b"abc", b"def"])
    path.write_bytes(b"abcdef")
    assert holds(path, [b"abc", memoryview(b"def")])
