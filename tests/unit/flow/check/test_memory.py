"""Counting a step of a network that is cut short, on tensors without data.

tests/host/test_flow_memory.py does so for ComfyUI's own models.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.unit.flow.toy_base import CHANNELS, WIDTH, Block, Network, ToyBase
from trainers.check.memory_estimate import MemoryEstimate
from trainers.flow.base_model import Conditions
from trainers.flow.check.memory import FrozenWeights, count_activations, estimate_memory
from trainers.flow.check.shortened import NUM_KEPT, shorten
from trainers.flow.check.without_data import META, running_without_data
from trainers.flow.checkpointing import checkpoint_blocks
from trainers.flow.config import FlowConfig
from trainers.flow.targets import find_targets
from trainers.training.adapter_shapes import AdapterSettings
from trainers.training.adapters import wrap_linear_layers
from trainers.training.block_streaming import count_streamed_bytes
from trainers.training.live_memory import LiveMemory

SHAPE = (CHANNELS, 32, 32)


class WideBlock(Block):
    """Equal in no weight to a Block."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 8 * WIDTH), nn.Linear(8 * WIDTH, WIDTH))  # type: ignore[assignment]


class HollowBase(ToyBase):
    """Has seven equal blocks and two others, without data."""

    def __init__(self, *, needs_values: bool = False) -> None:
        super().__init__()
        self.needs_values = needs_values
        self.network: Network
        self.network.layers = nn.ModuleList([*(Block() for _ in range(7)), WideBlock(), WideBlock()])
        self.network.to("meta")

    def predict(self, noisy: Tensor, sigmas: Tensor, conditions: Sequence[Conditions]) -> Tensor:
        if self.needs_values and noisy.mean().item() > 0:
            return noisy
        return self.network(noisy, sigmas, torch.cat([each["text"] for each in conditions]))


def text() -> Conditions:
    return {"text": torch.zeros(1, 5, WIDTH, device="meta")}


def count(*, is_whole: bool = False, is_streamed: bool = False, **settings: Any) -> int:
    config = FlowConfig(**{"rank": 2, **settings})
    return count_activations(
        HollowBase(), config, latent_shape=SHAPE, conditions=text(), is_whole=is_whole, is_streamed=is_streamed
    ).peak_bytes


def estimate(*, needs_values: bool = False, **settings: Any) -> MemoryEstimate:
    return estimate_memory(
        HollowBase(needs_values=needs_values),
        FlowConfig(**{"rank": 2, **settings}),
        latent_shape=SHAPE,
        conditions=text(),
    )


def test_runs_of_equal_blocks_are_cut_short() -> None:
    base = HollowBase()
    runs = shorten(base.network)
    assert [(len(run.kept), run.num_blocks) for run in runs] == [(NUM_KEPT, 7), (2, 2)]
    assert [type(block) for block in base.network.layers] == [Block, Block, WideBlock, WideBlock]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_checkpointing": False},
        {"train_batch_size": 3},
        {"is_streamed": True},
        {"lora_dropout": 0.1, "rank": 4},
    ],
)
def test_the_blocks_that_are_left_out_count(settings: dict[str, Any]) -> None:
    assert count(**settings) == pytest.approx(count(**settings, is_whole=True), rel=0.001)


def test_what_needs_more_memory_counts_more() -> None:
    usual = count()
    assert count(gradient_checkpointing=False) > usual
    assert count(train_batch_size=2) == pytest.approx(2 * usual, rel=0.1)


def test_adapters_count_with_gradients_states_and_average() -> None:
    num_parameters = 2 * sum(
        layer.in_features + layer.out_features
        for name, layer in HollowBase().network.layers.named_modules()
        if isinstance(layer, nn.Linear) and "modulation" not in name
    )
    assert estimate().adapters_bytes == 16 * num_parameters
    assert estimate(optimizer="AdamW8bit").adapters_bytes == 10 * num_parameters
    assert estimate(ema_decay=0.9).adapters_bytes == 20 * num_parameters


@pytest.mark.parametrize("adapter", ["dora", "loha", "lokr"])
def test_every_kind_of_adapter_is_counted(adapter: str) -> None:
    base = HollowBase()
    parameters = wrap_linear_layers(
        base.network,
        find_targets(base.network, base.family, "auto"),
        AdapterSettings.of(FlowConfig(adapter=adapter, rank=2)),
        component="unet",
        device=META,
    )
    assert estimate(adapter=adapter).adapters_bytes == 16 * sum(parameter.numel() for parameter in parameters)
    assert count(adapter=adapter) == pytest.approx(count(adapter=adapter, is_whole=True), rel=0.001)


def test_streamed_blocks_do_not_stay() -> None:
    network = HollowBase().network
    weights = FrozenWeights.of(network)
    outside = sum(4 * weight.numel() for layer in (network.inside, network.outside) for weight in layer.parameters())
    everything = sum(4 * weight.numel() for weight in network.parameters())
    assert weights.count_resident(num_streamed=weights.num_blocks) == outside
    assert weights.count_resident(num_streamed=0) == everything
    one = sum(4 * weight.numel() for weight in network.layers[0].parameters())
    assert weights.count_resident(num_streamed=1) == everything - one


def test_two_buffers_are_all_that_streamed_blocks_have_on_the_device() -> None:
    network = HollowBase().network.requires_grad_(False)
    largest = max(map(count_streamed_bytes, network.layers))
    assert count(is_streamed=True) == count() + 2 * largest


def test_a_model_that_needs_the_values_is_estimated_roughly_and_that_is_said() -> None:
    rough = estimate(needs_values=True)
    assert rough.is_rough and rough.text().startswith("very roughly ")
    assert not estimate().is_rough and rough.activations_bytes == round(rough.weights_bytes / 3)


class Attention(nn.Linear):
    """Attends over positions of 64 channels in one head."""

    def forward(self, input: Tensor) -> Tensor:
        rotated = functional.rms_norm(super().forward(input), (64,))
        return functional.dropout(functional.scaled_dot_product_attention(rotated, rotated, rotated), 0.0)


def test_no_attention_is_written_out_when_a_block_runs_again() -> None:
    """CUDA's kernels never hold the scores of all positions with all others."""
    layer, values = Attention(64, 64, device="meta"), torch.zeros(1, 1, 4096, 64, device="meta")
    checkpoint_blocks([layer])
    with running_without_data(), LiveMemory() as memory:
        layer(values).sum().backward()
    assert memory.take_peak() < 16 * values.nbytes < 4096 * 4096 * 4


def test_tensors_with_data_are_computed_as_ever() -> None:
    values = torch.randn(1, 2, 5, 8)
    expected = functional.scaled_dot_product_attention(values, values, values, is_causal=True)
    with running_without_data():
        assert torch.equal(functional.scaled_dot_product_attention(values, values, values, is_causal=True), expected)


def test_gradients_count_as_far_as_they_are_more_than_what_blocks_kept() -> None:
    usual, large = estimate(rank=2), estimate(rank=512)
    kept, gradients = WIDTH * 4 * SHAPE[1] * SHAPE[2], large.adapters_bytes // 4
    assert usual.activations_bytes == count(rank=2)
    assert large.activations_bytes == pytest.approx(count(rank=512) + gradients - 9 * kept, rel=0.1)


def test_living_storages_count_once_and_until_they_are_gone() -> None:
    known = torch.zeros(8, device="meta")
    with LiveMemory(leave_out=[known]) as memory:
        other = known + 1
        view = other[2:]
        assert memory.live_bytes == 32
        del other
        assert memory.live_bytes == 32
        del view
        assert memory.live_bytes == 0 and memory.take_peak() == 32 and memory.take_peak() == 0
