"""Shows how far the drawing of a grid is: sampling steps, remaining time, the grid so far. Passes
on ComfyUI's interrupts at every step.
"""

import time
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils
from PIL import Image
from tqdm import tqdm

from .progress import PREVIEW_SIZE, SECONDS_BETWEEN_PREVIEWS, SECONDS_BETWEEN_UPDATES, show_text


class DrawingProgress:
    """Counts the sampling steps of all images. Make it when drawing begins: remaining time is
    estimated from then on.
    """

    def __init__(self, *, num_images: int, num_steps: int) -> None:
        self._num_images, self._num_steps = num_images, num_steps
        self._total = num_images * num_steps
        self._bar = comfy.utils.ProgressBar(self._total)
        self._started_at = time.monotonic()
        self._sent_at = self._previewed_at = float("-inf")

    def check_interrupted(self) -> None:
        """Raises InterruptProcessingException if the user has cancelled."""
        comfy.model_management.throw_exception_if_processing_interrupted()

    def count_steps(self, image: int, name: str) -> Callable[..., None]:
        """The callback of ComfyUI's samplers for the image with that index."""

        def on_step(step: int, *_: Any) -> None:
            self.check_interrupted()
            done = image * self._num_steps + min(step + 1, self._num_steps)
            self._bar.update_absolute(done, self._total)
            self._send(image, name, done)

        return on_step

    def show(self, grid: Image.Image, *, num_drawn: int) -> None:
        """Show the grid so far as the node's preview, every few seconds."""
        self.check_interrupted()
        now = time.monotonic()
        if now - self._previewed_at < SECONDS_BETWEEN_PREVIEWS:
            return
        self._previewed_at = now
        small = grid.reduce(max(1, max(grid.size) // PREVIEW_SIZE))
        self._bar.update_absolute(num_drawn * self._num_steps, self._total, ("JPEG", small, PREVIEW_SIZE))

    def _send(self, image: int, name: str, done: int) -> None:
        now = time.monotonic()
        if now - self._sent_at < SECONDS_BETWEEN_UPDATES:
            return
        self._sent_at = now
        remaining = (now - self._started_at) / done * (self._total - done)
        show_text(f"image {image + 1}/{self._num_images} · ETA {tqdm.format_interval(remaining)}\n{name}")
