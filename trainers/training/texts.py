"""The texts of a run: caption variants, class prompts and sample prompts; and which of them an
item gets in a step.
"""

import re
from collections.abc import Sequence

from ..dataset.caption_marks import has_alternatives
from ..dataset.caption_variants import CaptionConfig, vary_caption
from ..dataset.crop_plan import TrainingItem
from ..dataset.dataset import Dataset
from ..dataset.image import TrainingImage
from ..wording import name_examples
from .config import TrainingConfig
from .sample_prompts import SamplePrompt, read_sample_prompts
from .seeds import derive_seed, happens


class TrainingTexts:
    """Knows all texts before the first step, so that the text encoders can be unloaded."""

    def __init__(
        self,
        dataset: Dataset,
        items: Sequence[TrainingItem],
        config: TrainingConfig,
        captions: CaptionConfig,
        *,
        measured: Sequence[TrainingItem] = (),
        also: Sequence[str] = (),
    ) -> None:
        """Make every variant of every text. `measured` are the items of the validation; `also` are
        texts of the family's own.

        Raises:
            ValueError: prior preservation has no class prompt, and a caption has no trigger word
                to remove; or a sample prompt is wrong.
        """
        self._config = config
        self._also = also
        images = list(dict.fromkeys(item.image for item in items))
        self._variants = {
            image: vary_caption(image.caption, captions, seed=config.seed, key=image.sha256) for image in images
        }
        self._measured = {
            item.image: vary_caption(item.image.caption, captions, seed=config.seed, key=item.image.sha256)[0]
            for item in measured
        }
        self._class_prompts = {
            image: self._list_class_prompts(dataset.get_trigger_word(image), variants)
            for image, variants in self._variants.items()
        }
        self._unused_alternatives = (
            [] if captions.use_wildcards else [image.name for image in images if has_alternatives(image.caption)]
        )
        self.samples: tuple[SamplePrompt, ...] = (
            read_sample_prompts(
                config,
                first_caption=self._variants[images[0]][0],
                trigger_word=dataset.get_trigger_word(images[0]),
                control_images={image.name: image.control_images for image in dataset.images if image.control_images},
            )
            if config.sample_every_n_steps
            else ()
        )
        if config.prior_loss_weight and not config.class_prompt.strip(" |"):
            for image in images:
                _require_trigger_word(
                    image.name, image.caption, dataset.get_trigger_word(image), is_needed=not image.is_regularization
                )

    def _list_class_prompts(self, trigger_word: str, variants: tuple[str, ...]) -> tuple[str, ...]:
        """List the prompts of the setting, or else one per caption variant."""
        given = tuple(prompt for part in self._config.class_prompt.split("|") if (prompt := part.strip()))
        return given or tuple(remove_trigger_word(variant, trigger_word) for variant in variants)

    def list_all(self) -> list[str]:
        """List every text that a step can need, the empty one included."""
        texts = {text for image in {*self._variants, *self._measured} for text in self.list_of_image(image)}
        texts.update(self._also)
        texts.update(text for sample in self.samples for text in (sample.prompt, sample.negative_prompt))
        return sorted(texts)

    def list_of_image(self, image: TrainingImage) -> list[str]:
        """List every text that a step or the validation can need with this image."""
        texts = {"", *self._variants.get(image, ())}
        if image in self._measured:
            texts.add(self._measured[image])
        if self._config.prior_loss_weight:
            texts.update(self._class_prompts.get(image, ()))
        return sorted(texts)

    def list_notices(self) -> list[str]:
        """List what the user should know about captions and class prompts."""
        return [*self._list_alternatives_notices(), *self._list_class_prompt_notices()]

    def _list_alternatives_notices(self) -> list[str]:
        if not self._unused_alternatives:
            return []
        return [
            f"{name_examples(self._unused_alternatives)}: {{a|b}} in a caption is trained as it is, as use_wildcards "
            "is off. Turn it on to choose one of them"
        ]

    def _list_class_prompt_notices(self) -> list[str]:
        if self._config.class_prompt and not self._config.prior_loss_weight:
            return ["class_prompt is not used: prior_loss_weight is 0"]
        prompts = self._list_prompts_from_captions()
        if not prompts:
            return []
        # Without its trigger word a caption may not name the class any more. Then nothing is
        # preserved, and only the user can see that.
        more = f" and {len(prompts) - 1} more" if len(prompts) > 1 else ""
        return [
            f"prior_loss_weight keeps what the base model draws for {prompts[0]!r}{more}. Set class_prompt if that "
            "does not name what should stay"
        ]

    def _list_prompts_from_captions(self) -> list[str]:
        """List what prior preservation keeps if class_prompt is empty."""
        if not self._config.prior_loss_weight or self._config.class_prompt.strip(" |"):
            return []
        return list(
            dict.fromkeys(prompts[0] for image, prompts in self._class_prompts.items() if not image.is_regularization)
        )

    def choose_caption(self, item: TrainingItem, step: int) -> str:
        """Choose the variant for `item` in `step`, or "" if caption dropout drops it."""
        seed, variants = self._config.seed, self._variants[item.image]
        if happens(self._config.caption_dropout, seed, "caption_dropout", step, item.index):
            return ""
        return variants[derive_seed(seed, "caption_variant", step, item.index) % len(variants)]

    def get_measured_caption(self, item: TrainingItem) -> str:
        """Return the caption that the validation always uses for `item`: its first variant."""
        return self._measured[item.image]

    def choose_class_prompt(self, item: TrainingItem, step: int) -> str:
        """Choose the prompt that prior preservation keeps. Caption dropout never drops it."""
        prompts = self._class_prompts[item.image]
        return prompts[derive_seed(self._config.seed, "class_prompt", step, item.index) % len(prompts)]


def remove_trigger_word(caption: str, trigger_word: str) -> str:
    """Remove the trigger word from a caption wherever it is a whole word."""
    if not _has_word(caption, trigger_word):
        return caption
    rest = re.sub(_match_whole_word(trigger_word), "", caption, flags=re.IGNORECASE)
    parts = (" ".join(part.split()) for part in rest.split(","))
    return ", ".join(part for part in parts if part)


def _has_word(caption: str, word: str) -> bool:
    return bool(word) and re.search(_match_whole_word(word), caption, re.IGNORECASE) is not None


def _match_whole_word(word: str) -> str:
    return rf"(?<!\w){re.escape(word)}(?!\w)"


def _require_trigger_word(name: str, caption: str, trigger_word: str, *, is_needed: bool) -> None:
    if not is_needed or _has_word(caption, trigger_word):
        return
    why = (
        f"{name}'s caption does not have the trigger word {trigger_word!r}"
        if trigger_word
        else "the dataset has no trigger word"
    )
    raise ValueError(
        "prior_loss_weight needs a prompt whose images should stay as they are. class_prompt is empty, and "
        f"{why}, so none can be made from the captions. Set class_prompt, such as: a photo of a dog"
    )
