"""Recomputed activations: the gradients are those without recomputation, bit for bit."""

import copy

import pytest
import torch
from torch import Tensor, nn

from trainers.flow.checkpointing import checkpoint_blocks


class InPlaceBlock(nn.Module):
    """It writes into tensors that autograd has saved, and into its input, as ComfyUI's FLUX blocks
    do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor, *, gate: Tensor) -> Tensor:
        x += self.attention(self.norm(x)) * gate
        x += self.mlp(self.norm(x)) * gate
        x[:, 1:3] *= torch.tanh(x[:, 3:5])
        return x


def compute_gradients(network: nn.Sequential) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, gate = (torch.randn(2, 6, 8, generator=generator) for _ in range(2))
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        for block in network:
            x = block(x, gate=gate)
        x.square().mean().backward()
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("frozen", [False, True])
def test_blocks_that_write_in_place_get_the_same_gradients_with_checkpoints(frozen: bool):
    torch.manual_seed(0)
    plain = nn.Sequential(InPlaceBlock(), InPlaceBlock())
    if frozen:  # as the base's weights: the first block's input needs no gradient
        for name, parameter in plain.named_parameters():
            parameter.requires_grad_("attention" in name)
    checkpointed = copy.deepcopy(plain)
    assert checkpoint_blocks(checkpointed) == 2
    expected, found = compute_gradients(plain), compute_gradients(checkpointed)
    assert len(expected) == len(found) == (4 if frozen else 12)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
