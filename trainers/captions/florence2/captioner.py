"""Florence-2 as a captioner: describes images in batches. Loads the model when the first image
comes.

Letters: B images, S prompt tokens.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList

from .folder import ModelFolder
from .images import ImagePreparation
from .model import build_generation_config, load_model
from .tasks import expand_prompt
from .text import PromptTokenizer


class Florence2Captioner:
    """Describes images. `place` moves the loaded model to its device; the inputs follow it."""

    def __init__(self, folder: Path, *, dtype: torch.dtype, place: Callable[[nn.Module], object]) -> None:
        self._folder = ModelFolder.open(folder)
        self._dtype, self._place = dtype, place
        self._tokenizer = PromptTokenizer(folder)
        self._preparation = ImagePreparation.read(folder)
        self._model: Any = None  # transformers' types differ from version to version

    @property
    def identity(self) -> str:
        """A text that changes whenever the same image and prompt could get another caption."""
        return f"florence2 {self._folder.hash_content()} {self._dtype}"

    @torch.inference_mode()
    def describe(
        self,
        images: Sequence[Image.Image],
        *,
        prompt: str,
        num_beams: int,
        max_new_tokens: int,
        check_interrupted: Callable[[], None] = lambda: None,
    ) -> list[str]:
        """Return one text per image, by beam search without sampling: the same every time, alone or
        in a batch. Can be interrupted at every token.

        Raises:
            ValueError: the prompt is not usable, or the folder's files do not belong together.
            RuntimeError: the GPU ran out of memory.
        """
        sentence = expand_prompt(prompt)
        model = self._load_once()
        input_ids = self._build_input_ids(sentence, len(images), model)
        longest = min(max_new_tokens, model.config.text_config.max_position_embeddings - 1)
        try:
            generated = model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                pixel_values=self._preparation.pixel_values(images).to(model.device, self._dtype),
                generation_config=build_generation_config(self._folder, num_beams=num_beams, max_new_tokens=longest),
                stopping_criteria=StoppingCriteriaList([_Interruptible(check_interrupted)]),
            )
        except torch.OutOfMemoryError:
            raise RuntimeError(
                f"the GPU ran out of memory captioning {len(images)} images at once. Lower batch_size or num_beams"
            ) from None
        return [self._tokenizer.decode(row) for row in generated.tolist()]

    def close(self) -> None:
        """Release the model. The next image loads it again."""
        self._model = None

    def _load_once(self) -> Any:
        if self._model is None:
            model = load_model(self._folder, dtype=self._dtype)
            self._place(model)
            self._model = model
        return self._model

    def _build_input_ids(self, sentence: str, num_images: int, model: Any) -> Tensor:
        """Return int64 [B, S]: the image positions, then the sentence between its marks."""
        config = model.config
        sentence_ids = self._tokenizer.encode(sentence)
        num_positions = _count_positions(self._preparation.size_hw, config.vision_config)
        if config.image_token_id in sentence_ids:
            raise ValueError(
                f"the prompt {sentence!r} contains the token that represents the image. Write it in other words"
            )
        if num_positions + len(sentence_ids) + 2 > config.text_config.max_position_embeddings:
            raise ValueError(f"the prompt has {len(sentence_ids)} tokens, too many for this model. Write a shorter one")
        ids = [
            *[config.image_token_id] * num_positions,
            config.text_config.bos_token_id,
            *sentence_ids,
            config.text_config.eos_token_id,
        ]
        return torch.tensor([ids] * num_images, device=model.device)


class _Interruptible(StoppingCriteria):
    """Checks for an interrupt after every token: on a CPU, a caption of a few hundred words takes a
    minute.
    """

    def __init__(self, check_interrupted: Callable[[], None]) -> None:
        self._check_interrupted = check_interrupted

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self._check_interrupted()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def _count_positions(size_hw: tuple[int, int], vision: Any) -> int:
    """Count the image positions: the vision tower's grid, and one for the whole image (24 x 24 + 1
    at 768 pixels).
    """
    height, width = size_hw
    for kernel, stride, padding in zip(vision.patch_size, vision.patch_stride, vision.patch_padding, strict=True):
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
    return height * width + 1
