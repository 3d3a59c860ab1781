"""Hashes of named tensors."""

import hashlib

import pytest
import torch

from trainers.files.tensor_hash import hash_named_tensors

# Written by the versions that first had these checksums: files on users' disks have them.
CACHE_ENTRY = "13c14d9c1b7ae046db5637ce5bd4e667588c6dc54e2230d5fda69073c8ed8998"
STATE = "6a6cebe96bc8a283b80c845d2a4d8a4a"
TENSORS = {
    "b": torch.arange(6.0).reshape(2, 3).T,
    "a": torch.ones(2, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 3),
}


def test_caches_and_states_of_earlier_versions_keep_their_checksums():
    assert hash_named_tensors(TENSORS, hashlib.sha256(b"key")) == CACHE_ENTRY
    assert hash_named_tensors(TENSORS, hashlib.blake2b(b"{}", digest_size=16)) == STATE


@pytest.mark.parametrize("change", [{"c": torch.ones(1)}, {"a": torch.ones(2)}, {"empty": torch.zeros(3, 0)}])
def test_names_shapes_and_dtypes_count_and_their_order_does_not(change):
    known = hash_named_tensors(TENSORS, hashlib.sha256())
    assert hash_named_tensors(dict(reversed(TENSORS.items())), hashlib.sha256()) == known
    assert hash_named_tensors({**TENSORS, **change}, hashlib.sha256()) != known
