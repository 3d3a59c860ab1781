"""Keeps frozen weights of blocks in main memory, and brings those of one block after the other to
the device, one block ahead of the computation.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor, nn

NUM_BUFFERS = 2
_ALIGNMENT = 256  # bytes, as CUDA's own allocations have
_SMALLEST_PIECE = 2**20
_SHARE_LEFT_FREE = 1 / 4  # of main memory: pinned memory is never swapped out

T = TypeVar("T")


class BlockStreamer:
    """A ring of two buffers on the device, each as large as the largest block.

    While a block runs, its frozen weights are views into one buffer, and the weights of the block
    that will probably come next are copied into the other one: forward in the order in which the
    blocks ran first, in the backward pass in its reverse. On a GPU the copies have their own
    stream. Weights are only read: nothing is copied back.

    Autograd keeps weights for the backward pass without a copy, so that each block must be one that
    is computed again there (torch's checkpoint, either kind). Autograd runs what it is given from
    the last operation to the first: a block's backward pass ends before that of the block before it
    begins, and so before its buffer is filled again.

    On CUDA each block also gets a copy in pinned memory, which the GPU reads by itself, as long as
    a quarter of the main memory stays free. The others come from where they are, which takes two to
    four times as long.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = _CopyStream(device)
        self._slots = tuple(_Slot() for _ in range(NUM_BUFFERS))
        self._used = self._slots[1]  # the slot of the block that ran last
        self._largest_bytes = self._num_pinned = 0
        self._modules: list[nn.Module] = []
        self._order: list[_Block] = []  # as they ran first
        self._last_position, self._direction = 0, 1
        self._is_running = False

    @property
    def buffer_bytes(self) -> int:
        """What the ring takes on the device, now."""
        return sum(slot.buffer.nbytes for slot in self._slots if slot.buffer is not None)

    @property
    def num_blocks(self) -> int:
        return len(self._modules)

    def describe(self, num_all: int) -> str:
        """Tell how many of all blocks are streamed, and from where."""
        text = describe_swap(self.num_blocks, num_all)
        if self._device.type != "cuda" or self._num_pinned == self.num_blocks:
            return text
        return f"{text}; {self._num_pinned} of them are pinned, as main memory has no room for more"

    def stream(self, block: nn.Module, dtype: torch.dtype | None = None) -> None:
        """Let the block's frozen weights stay in main memory from now on; those that are on the
        device are brought there. They come as `dtype`, or as they are.

        A block may not contain another one. What it trains is brought to the device.
        """
        for weight in block.parameters():
            if weight.requires_grad:
                weight.data = weight.data.to(self._device)
        streamed = _Block(block, dtype)
        self._largest_bytes = max(self._largest_bytes, streamed.num_bytes)
        self._modules.append(block)
        if self._device.type == "cuda" and _has_room_for(streamed.num_bytes):
            streamed.pin()
            self._num_pinned += 1

        block._bringing_weights = partial(self._bringing, streamed)  # type: ignore[assignment]
        _run_inside(block, block._bringing_weights)  # type: ignore[arg-type]

    def choose_more(self, blocks: Sequence[nn.Module]) -> list[nn.Module]:
        """Return half of the blocks whose weights are on the device all the time; [] if there are
        none.
        """
        resident = [block for block in blocks if not any(block is known for known in self._modules)]
        return spread_evenly(resident, -(-len(resident) // 2))

    @contextmanager
    def _bringing(self, block: "_Block") -> Iterator[None]:
        assert not self._is_running, "a streamed block inside of another one"
        self._is_running = True
        try:
            self._bring(block)
            self._bring_ahead(block)
            block.use(self._used.weights, self._device)
            yield
        finally:
            block.restore()
            self._is_running = False

    def _bring(self, block: "_Block") -> None:
        self._require_buffers()
        if block.position < 0:
            block.position = len(self._order)
            self._order.append(block)
        slot = self._find_slot(block) or self._fill(self._find_other_slot(), block)
        self._copies.wait_for(slot.filled)
        self._used = slot

    def _bring_ahead(self, block: "_Block") -> None:
        coming = self._find_next(block)
        if coming is not None and self._find_slot(coming) is None:
            self._fill(self._find_other_slot(), coming)

    def _find_next(self, block: "_Block") -> "_Block | None":
        """At both ends of the order, forward and backward pass turn around."""
        position = block.position
        if position in (0, len(self._order) - 1):
            self._direction = 1 if position == 0 else -1
        elif position != self._last_position:
            self._direction = 1 if position > self._last_position else -1
        self._last_position = position
        position += self._direction
        return self._order[position] if 0 <= position < len(self._order) else None

    def _find_slot(self, block: "_Block") -> "_Slot | None":
        return next((slot for slot in self._slots if slot.block is block), None)

    def _find_other_slot(self) -> "_Slot":
        first, second = self._slots
        return second if self._used is first else first

    @torch.inference_mode(False)  # autograd could not keep what is made in it
    @torch.no_grad()
    def _fill(self, slot: "_Slot", block: "_Block") -> "_Slot":
        assert slot.buffer is not None
        slot.block = None  # until it is whole
        with self._copies.running():
            slot.weights = block.copy_into(slot.buffer)
            slot.filled = self._copies.record()
        slot.block = block
        return slot

    @torch.inference_mode(False)
    def _require_buffers(self) -> None:
        """Both at once: the second one would not fit when activations are there already."""
        if all(slot.buffer is not None and slot.buffer.nbytes >= self._largest_bytes for slot in self._slots):
            return
        for slot in self._slots:
            slot.buffer, slot.block, slot.weights = None, None, []
        # memory of the copies' stream is used again by that stream alone, so that no other tensor
        # gets it while a copy still runs
        with self._copies.running():
            for slot in self._slots:
                slot.buffer = torch.empty(self._largest_bytes, dtype=torch.uint8, device=self._device)


def share_weights(block: nn.Module, user: nn.Module) -> None:
    """Let `user`, another module that computes with the layers of this block, bring their weights
    as the block does, if they are in main memory.
    """
    bringing = getattr(block, "_bringing_weights", None)
    if bringing is not None:
        _run_inside(user, bringing)


def _run_inside(module: nn.Module, bringing: Callable[[], AbstractContextManager[None]]) -> None:
    forward = module.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        with bringing():
            return forward(*args, **kwargs)

    module.forward = run  # type: ignore[assignment]


def count_streamed_bytes(block: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Count what a block takes of a buffer of the ring."""
    return _find_starts([weight for _, _, weight in _list_frozen(block) if _is_plain(weight)], dtype)[1]


def move_resident(
    module: nn.Module, device: torch.device, dtype: torch.dtype | None = None, *, without: Sequence[nn.Module]
) -> None:
    """Do what `to` does, except for these blocks inside."""
    left_out = {id(each) for block in without for each in block.modules()}

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    for each in module.modules():
        if id(each) not in left_out:
            nn.Module._apply(each, move, recurse=False)


def describe_swap(number: int, num_all: int) -> str:
    return f"the weights of {number} of {num_all} blocks stay in main memory, and come one by one"


def spread_evenly(blocks: Sequence[T], number: int) -> list[T]:
    """Choose so many of the blocks, with equal distances: so that while one is computed that is on
    the device already, the next one can come.
    """
    number = min(number, len(blocks))
    return [blocks[index * len(blocks) // number] for index in range(number)]


@dataclass(eq=False)
class _Slot:
    """One buffer of the ring, and whose weights it has."""

    buffer: Tensor | None = None  # [bytes] uint8
    block: "_Block | None" = None
    weights: list[nn.Parameter] = field(default_factory=list)  # views into the buffer
    filled: Any = None  # the event after the copy


class _Block:
    """The frozen weights of one block: where they belong, where they are, and where each has its
    place in a buffer.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype | None) -> None:
        found = [(owner, name, _keep_in_main_memory(weight)) for owner, name, weight in _list_frozen(module)]
        self._plain = [place for place in found if _is_plain(place[-1])]
        self._others = [place for place in found if not _is_plain(place[-1])]  # such as quantized ones
        self._dtype = dtype
        self._starts, self.num_bytes = _find_starts([weight for *_, weight in self._plain], dtype)
        self._pieces: list[Tensor] = []  # [bytes] uint8 in pinned memory
        self.position = -1  # in the order in which the blocks ran first
        self.restore()

    @torch.inference_mode(False)
    @torch.no_grad()
    def pin(self) -> None:
        """torch rounds what it pins up to a power of two: a block in several pieces wastes less."""
        whole = torch.empty(self.num_bytes, dtype=torch.uint8)
        self._copy_weights(whole)
        self._pieces = [piece.pin_memory() for piece in whole.split(list(_split_in_powers_of_two(self.num_bytes)))]

    def copy_into(self, buffer: Tensor) -> list[nn.Parameter]:
        """Return the weights, as views into the buffer."""
        if not self._pieces:
            return self._copy_weights(buffer)
        parts = buffer[: self.num_bytes].split([piece.numel() for piece in self._pieces])
        for part, piece in zip(parts, self._pieces, strict=True):
            part.copy_(piece, non_blocking=True)
        return self._view(buffer)

    def use(self, weights: Sequence[nn.Parameter], device: torch.device) -> None:
        for (module, name, _), weight in zip(self._plain, weights, strict=True):
            module._parameters[name] = weight
        for module, name, weight in self._others:
            module._parameters[name] = nn.Parameter(weight.detach().to(device, copy=True), requires_grad=False)

    def restore(self) -> None:
        for module, name, weight in (*self._plain, *self._others):
            module._parameters[name] = weight

    def _copy_weights(self, buffer: Tensor) -> list[nn.Parameter]:
        views = self._view(buffer)
        for view, (_, _, weight) in zip(views, self._plain, strict=True):
            view.copy_(weight, non_blocking=True)
        return views

    def _view(self, buffer: Tensor) -> list[nn.Parameter]:
        views = []
        for start, (_, _, weight) in zip(self._starts, self._plain, strict=True):
            dtype = _choose_dtype(weight, self._dtype)
            part = buffer[start : start + weight.numel() * dtype.itemsize]
            views.append(nn.Parameter(part.view(dtype).view(weight.shape), requires_grad=False))
        return views


class _CopyStream:
    """The stream of the copies, on devices that have streams. Elsewhere everything has its order
    already.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._backend = torch.get_device_module(device) if device.type in ("cuda", "xpu") else None
        self._stream = self._backend.Stream(device) if self._backend else None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Copies inside begin when everything that was computed so far is done."""
        if self._backend and self._stream:
            self._stream.wait_stream(self._backend.current_stream(self._device))
        with self._backend.stream(self._stream) if self._backend else nullcontext():
            yield

    def record(self) -> Any:
        return self._stream.record_event() if self._stream else None

    def wait_for(self, event: Any) -> None:
        """Let the computation wait, and not the host."""
        if self._backend:
            self._backend.current_stream(self._device).wait_event(event)


def _list_frozen(block: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    return [
        (module, name, weight)
        for module in block.modules()
        for name, weight in module._parameters.items()
        if weight is not None and not weight.requires_grad
    ]


def _keep_in_main_memory(weight: nn.Parameter) -> nn.Parameter:
    if weight.device.type in ("cpu", "meta"):
        return weight
    return nn.Parameter(weight.detach().to("cpu"), requires_grad=False)


def _is_plain(weight: Tensor) -> bool:
    return type(weight) in (Tensor, nn.Parameter) and weight.layout == torch.strided and weight.is_contiguous()


def _choose_dtype(weight: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and weight.is_floating_point() else weight.dtype


def _find_starts(weights: Sequence[Tensor], dtype: torch.dtype | None) -> tuple[list[int], int]:
    """Return where in a buffer each weight begins, and the bytes of all."""
    starts, end = [], 0
    for weight in weights:
        starts.append(end)
        num_bytes = weight.numel() * _choose_dtype(weight, dtype).itemsize
        end += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
    return starts, end


def _split_in_powers_of_two(num_bytes: int) -> Iterator[int]:
    while num_bytes >= _SMALLEST_PIECE:
        piece = 1 << (num_bytes.bit_length() - 1)
        yield piece
        num_bytes -= piece
    if num_bytes:
        yield num_bytes


def _has_room_for(num_bytes: int) -> bool:
    memory = psutil.virtual_memory()
    return memory.available - num_bytes >= _SHARE_LEFT_FREE * memory.total
