"""What moves with a batch arrives as it was. tests/pretend_gpu counts the copies."""

import torch

from trainers.training import transfer
from trainers.training.transfer import move_together

BATCH = {
    "latents": torch.randn(2, 4, 3, 3),
    "texts": [(torch.randn(1, 5).to(torch.bfloat16), {"pooled": torch.arange(3), "kind": "toy"}), [None, 2.5]],
    "mask": torch.tensor([True, False, True]),
    "transposed": torch.randn(3, 2).t(),
    "number": torch.tensor(7.0),
    "empty": torch.zeros(0, 4),
}


def test_on_a_cpu_nothing_is_copied():
    assert move_together(BATCH, torch.device("cpu")) is BATCH


def test_packed_and_unpacked_tensors_are_equal():
    """The packing itself, without a device."""
    leaves = [tensor for tensor in BATCH.values() if isinstance(tensor, torch.Tensor)]
    for before, after in zip(leaves, transfer._move(leaves, torch.device("cpu")), strict=True):
        assert torch.equal(before, after) and before.dtype == after.dtype


def test_writing_into_one_tensor_is_no_change_of_the_others():
    one, other = transfer._move([torch.ones(3), torch.ones(3)], torch.device("cpu"))
    product = (other * torch.ones(3, requires_grad=True)).sum()
    one.add_(1)
    product.backward()  # an error, if autograd took the two for one


def test_other_values_and_the_nesting_stay(monkeypatch):
    monkeypatch.setattr(transfer, "_move", lambda tensors, device: [tensor.to(device) for tensor in tensors])
    moved = move_together(BATCH, torch.device("meta"))
    assert moved.keys() == BATCH.keys() and moved["texts"][1] == [None, 2.5] and moved["texts"][0][1]["kind"] == "toy"
    assert moved["texts"][0][0].device.type == "meta"


def test_what_is_on_the_device_already_is_not_moved():
    there = torch.zeros(2, device="meta")
    assert move_together({"a": there}, torch.device("meta"))["a"] is there
