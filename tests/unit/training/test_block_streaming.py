"""Weights that come block by block: the ring of two, and gradients equal bit for bit."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainers.training import block_streaming
from trainers.training.block_streaming import BlockStreamer, _Slot, count_streamed_bytes, spread_evenly

CPU = torch.device("cpu")
WIDTH, BUFFER_BYTES = 16, 2048  # of a block: 16 x 16 numbers and 16 numbers, each at a multiple of 256 bytes


class Block(nn.Module):
    """A frozen layer with a small trained one next to it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.trained = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.layer.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.layer(torch.tanh(self.layer(x))) + self.trained(x))


@pytest.fixture
def blocks() -> list[Block]:
    torch.manual_seed(0)
    return [Block() for _ in range(5)]


def run(blocks: list[Block], *, use_reentrant: bool = False) -> Tensor:
    x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
    anchor = torch.zeros((), requires_grad=True)
    for block in blocks:
        # the reentrant kind needs an input with a gradient
        x = checkpoint(lambda x, _, block=block: block(x), x, anchor, use_reentrant=use_reentrant)
    return x


def compute_gradients(blocks: list[Block], *, use_reentrant: bool = False) -> list[Tensor]:
    for block in blocks:
        block.zero_grad()
    run(blocks, use_reentrant=use_reentrant).square().sum().backward()
    return [block.trained.weight.grad.clone() for block in blocks]


@pytest.fixture
def fills(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The positions of the blocks that were copied, in that order."""
    found: list[int] = []
    original: Callable[..., _Slot] = BlockStreamer._fill

    def fill(streamer: BlockStreamer, slot: _Slot, block: block_streaming._Block) -> _Slot:
        found.append(block.position)
        return original(streamer, slot, block)

    monkeypatch.setattr(BlockStreamer, "_fill", fill)
    yield found


def stream(blocks: list[Block], **settings: torch.dtype) -> BlockStreamer:
    streamer = BlockStreamer(CPU)
    for block in blocks:
        streamer.stream(block, **settings)
    return streamer


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_gradients_are_the_same_bit_for_bit(blocks: list[Block], number: int, use_reentrant: bool):
    expected = compute_gradients(blocks, use_reentrant=use_reentrant)
    before = [weight.clone() for block in blocks for weight in block.parameters()]
    streamer = stream(spread_evenly(blocks, number))
    for _ in range(3):
        found = compute_gradients(blocks, use_reentrant=use_reentrant)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, (w for b in blocks for w in b.parameters()), strict=True))
    assert streamer.num_blocks == number and streamer.buffer_bytes == 2 * count_streamed_bytes(blocks[0])


def test_the_next_block_comes_while_one_runs_and_both_ends_need_no_copy(blocks: list[Block], fills: list[int]):
    stream(blocks)
    compute_gradients(blocks)
    assert fills == [0, 1, 2, 3, 4, 2, 1, 0]  # in the first forward pass nobody knows what comes next
    fills.clear()
    compute_gradients(blocks)
    assert fills == [2, 3, 4, 2, 1, 0]  # the first two and the last two are there already


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_buffer_is_filled_again_only_after_the_backward_pass_of_its_block(
    blocks: list[Block], fills: list[int], use_reentrant: bool
):
    """Block 2 comes while block 3 is computed again, into the buffer of block 4, which is done."""
    stream(blocks)
    compute_gradients(blocks)
    for number, block in enumerate(blocks):
        # negative: the gradient of that block is there
        block.trained.weight.register_hook(lambda _, number=number: fills.append(-number - 1))
    fills.clear()
    compute_gradients(blocks, use_reentrant=use_reentrant)
    assert fills == [2, 3, 4, -5, 2, -4, 1, -3, 0, -2, -1]


def test_an_overwritten_weight_is_noticed(blocks: list[Block]):
    """Without a checkpoint, autograd refuses weights whose buffer has those of another block."""
    stream(blocks)
    x = torch.randn(3, WIDTH)
    for block in blocks:
        x = block(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.square().sum().backward()


def test_blocks_may_come_in_another_order(blocks: list[Block]):
    order = [0, 3, 1, 1, 4, 2]
    expected = [run([blocks[index] for index in order])]
    stream(blocks)
    run(blocks)
    assert torch.equal(run([blocks[index] for index in order]), expected[0])


def test_an_error_inside_leaves_the_own_weights_and_the_next_run_works(blocks: list[Block]):
    own = [block.layer.weight for block in blocks]
    expected = compute_gradients(blocks)
    stream(blocks)
    with pytest.raises(RuntimeError):
        blocks[1](torch.zeros(3, WIDTH + 1))
    assert all(block.layer.weight is weight for block, weight in zip(blocks, own, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(expected, compute_gradients(blocks), strict=True))


def test_weights_come_in_the_dtype_of_the_computation(blocks: list[Block]):
    seen = []
    for block in blocks:
        block.layer.half()
        block.register_forward_pre_hook(lambda module, _: seen.append(module.layer.weight.dtype))
    streamer = stream(blocks, dtype=torch.float32)
    blocks[0].layer.register_forward_pre_hook(lambda layer, _: seen.append(layer.weight.dtype))
    compute_gradients(blocks)
    assert torch.float32 in seen and all(block.layer.weight.dtype == torch.float16 for block in blocks)
    assert streamer.buffer_bytes == 2 * (1024 + 256)


def test_other_layouts_and_trained_weights_are_left_out_of_the_buffers(blocks: list[Block]):
    blocks[0].layer.weight = nn.Parameter(blocks[0].layer.weight.t(), requires_grad=False)
    expected = compute_gradients(blocks)
    assert count_streamed_bytes(blocks[0]) == 256 and count_streamed_bytes(blocks[1]) == 1024 + 256
    stream(blocks)
    assert all(torch.equal(a, b) for a, b in zip(expected, compute_gradients(blocks), strict=True))


def test_samples_in_inference_mode_leave_nothing_that_autograd_refuses(blocks: list[Block]):
    expected = compute_gradients(blocks)
    stream(blocks)
    with torch.inference_mode():
        run(blocks)
    assert all(torch.equal(a, b) for a, b in zip(expected, compute_gradients(blocks), strict=True))


def test_more_blocks_may_follow_with_larger_ones(blocks: list[Block]):
    blocks[3].layer = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
    blocks[3].register_parameter("large", nn.Parameter(torch.zeros(4096), requires_grad=False))
    expected = compute_gradients(blocks)
    streamer = BlockStreamer(CPU)
    counts = []
    while more := streamer.choose_more(blocks):
        for block in more:
            streamer.stream(block)
        counts.append(streamer.num_blocks)
        assert all(torch.equal(a, b) for a, b in zip(expected, compute_gradients(blocks), strict=True))
    assert counts == [3, 4, 5]


def test_blocks_are_chosen_at_equal_distances():
    assert spread_evenly(range(8), 4) == [0, 2, 4, 6]
    assert spread_evenly(range(7), 3) == [0, 2, 4]
    assert spread_evenly(range(3), 9) == [0, 1, 2] and spread_evenly(range(3), 0) == []


def test_pinned_pieces_waste_little_and_leave_a_quarter_of_the_main_memory(monkeypatch: pytest.MonkeyPatch):
    sizes = list(block_streaming._split_in_powers_of_two(69_000_000))
    assert sum(sizes) == 69_000_000 and len(sizes) <= 8
    rounded = sum(1 << (size - 1).bit_length() for size in sizes)
    assert rounded - 69_000_000 < 2**20
    monkeypatch.setattr(
        block_streaming.psutil, "virtual_memory", lambda: SimpleNamespace(available=30, total=100), raising=True
    )
    assert block_streaming._has_room_for(5) and not block_streaming._has_room_for(6)
