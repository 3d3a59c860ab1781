"""Several processes, started by `accelerate launch`: their ranks, and their summed gradients."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from .device import choose_device

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among `size` processes. Only rank 0 writes files and talks to the user."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T], share_size: int) -> Sequence[T]:
        """Return this process's part of a batch that all processes share. At the end of a bucket it
        can be empty.
        """
        return items[self.rank * share_size : (self.rank + 1) * share_size]

    def put_own_share_first(self, items: list[T]) -> Iterator[list[T]]:
        """Yield this process's share, then all items: each of several processes encodes its share
        to the disk cache, then reads what the others encoded.
        """
        if self.size > 1:
            yield items[self.rank :: self.size]
            self.wait_for_all()
        yield items

    def sum_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
        """Sum the gradients of all processes in place, with one message, and return the summed
        loss.
        """
        if self.size == 1:
            return loss
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        message = torch.cat([loss.detach().reshape(1), *(gradient.flatten() for gradient in gradients)])
        torch.distributed.all_reduce(message)
        summed = message[1:].split([gradient.numel() for gradient in gradients])
        for parameter, gradient in zip(parameters, summed, strict=True):
            parameter.grad = gradient.view_as(parameter)
        return message[0]

    def ask_main(self, ask: Callable[[], T]) -> T:
        """Return what rank 0 finds, to all of them."""
        answers = [ask() if self.is_main else None]
        if self.size > 1:
            torch.distributed.broadcast_object_list(answers, src=0)
        return answers[0]  # pyright: ignore[reportReturnType]

    def wait_for_all(self) -> None:
        if self.size > 1:
            torch.distributed.barrier()


def current_world(device_name: str | None = None) -> tuple[World, torch.device]:
    """Return the world that `accelerate launch` made, and this process's device. Without it: one
    process, and the device called `device_name` or the best one.

    Raises:
        ValueError: there is no such device, or several processes would all use it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World(), choose_device(device_name)
    if device_name not in (None, "cpu"):
        raise ValueError(
            f"device {device_name!r} would be every process's. accelerate launch gives each process its own: leave "
            "device out, and choose GPUs by accelerate's --gpu_ids. Only cpu may be given"
        )
    from accelerate import PartialState  # starts the process group, so only if there are several processes

    state = PartialState(cpu=device_name == "cpu" or not torch.accelerator.is_available())
    assert state.device is not None
    return World(state.process_index, state.num_processes), state.device
