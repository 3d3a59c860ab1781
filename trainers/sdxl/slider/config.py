"""The settings of a slider: three prompts instead of images. Imports no torch."""

from dataclasses import dataclass, fields

from ...config import param
from ...training.validation_plan import NEVER
from ..config import SDXLConfig

ATTRIBUTE = "{attribute}"
# Settings of images and their captions, of the text encoders, whose outputs are the directions, and
# of what has been tried with images only.
NOT_FOR_SLIDERS = (
    "num_train_epochs",
    "save_every_n_epochs",
    "caption_dropout",
    "unmasked_weight",
    "normalize_masked_loss",
    "validation_share",
    "validate_every_n_steps",
    "save_best",
    "early_stop",
    "train_text_encoders",
    "text_encoder_learning_rate",
    "text_encoder_2_learning_rate",
    "stop_text_encoder_training",
    "noise_offset",
    "multires_noise_iterations",
    "multires_noise_discount",
    "ip_noise_gamma",
    "immiscible_noise",
    "tlora_min_rank",
    "torch_compile",
    "num_new_tokens",
    "token_learning_rate",
    "token_initializer",
)


@dataclass(frozen=True)
class SliderPrompts:
    """What the slider acts on, and where strengths 1 and -1 lead."""

    target: str
    positive: str
    negative: str

    @property
    def all(self) -> tuple[str, str, str]:
        return self.target, self.positive, self.negative


@dataclass(frozen=True)
class SliderConfig(SDXLConfig):
    """The settings of a slider (Gandikota et al. 2023, "Concept Sliders"): SDXLConfig's without
    NOT_FOR_SLIDERS, and its prompts.
    """

    target: str = param(
        "",
        "What the slider acts on, such as: a photo of a person. Empty: everything, which changes more than you may "
        "want.",
    )
    positive: str = param("", "What strength 1 leads to, such as: a photo of a very old person.")
    negative: str = param("", "What strength -1 leads to, such as: a photo of a very young person.")
    attributes: str = param(
        "",
        "What the slider must not change, with vertical bars between, such as woman and man. Each is put in front of "
        "all three prompts, or where they have the word attribute in curly brackets; each sample has one of them.",
    )
    slider_guidance: float = param(
        1.0,
        "How far strength 1 leads: so many times the difference between the predictions for positive and negative "
        "(eta in the paper). Usually 0.5 to 2; lower if images break at strength 2.",
        min=0.01,
        max=100.0,
    )
    num_drawings: int = param(
        48,
        "Images that the base model draws for the three prompts before the first step, and that the slider is trained "
        "on. Usually 24 to 96; at least one for each attribute.",
        min=1,
        max=10_000,
    )

    rank: int = param(8, "Rank of the LoRA matrices (kohya: network_dim). Usually 4 to 16.", min=1, max=1024)
    alpha: float = param(
        8.0,
        "The LoRA acts with strength alpha / rank (kohya: network_alpha). Usually rank or half of it.",
        min=1e-3,
        max=4096,
    )
    max_train_steps: int = param(500, "Optimizer steps. Usually 300 to 1000.", min=1, max=1_000_000)
    train_batch_size: int = param(1, "Samples per forward pass and GPU. Usually 1 to 4.", min=1, max=256)
    caption_dropout: float = param(0.0, "None: the slider has no captions.", min=0.0, max=1.0)
    validate_every_n_steps: int = param(NEVER, "Never: nothing is held out.", min=NEVER, max=1_000_000)
    sample_prompt: str = param(
        "",
        "Prompts of the sample images, one per line or with vertical bars between them, each drawn at strengths -2, "
        "-1, 0, 1 and 2. A line can have sd-scripts' options: --n blurry --w 832 --h 1216 --d 7 --s 28 --l 6. Empty: "
        "target.",
    )
    class_prompt: str = param(
        "",
        "What prior_loss_weight preserves, at every strength, such as: a photo of a house. Put vertical bars between "
        "several prompts; each sample draws one.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        defaults = {spec.name: spec.default for spec in fields(self)}
        for name in NOT_FOR_SLIDERS:
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"{name} is not for sliders. Leave it out, or at {defaults[name]}")
        if self.adapter == "dora":
            raise ValueError("adapter dora has no opposite, and a slider needs one. Choose lora, loha or lokr")
        if self.prior_loss_weight and not self.class_prompt.strip(" |"):
            raise ValueError("prior_loss_weight needs class_prompt: the prompts whose images should stay as they are")
        self._check_prompts()

    def _check_prompts(self) -> None:
        if not (self.positive.strip() or self.negative.strip()):
            raise ValueError(
                "positive and negative are empty. Write what strengths 1 and -1 should lead to, such as: a photo of a "
                "very old person, and: a photo of a very young person"
            )
        if self.positive.split() == self.negative.split():
            raise ValueError(f"positive and negative are both {self.positive!r}. A slider leads from one to the other")
        has_place = any(ATTRIBUTE in prompt for prompt in (self.target, self.positive, self.negative))
        if has_place and not self.attribute_list:
            raise ValueError(f"a prompt has {ATTRIBUTE}, but attributes is empty. Write some, such as: woman | man")
        if self.num_drawings < len(self.prompts):
            raise ValueError(
                f"num_drawings must be {len(self.prompts)} or more, one for each attribute, got {self.num_drawings}"
            )

    @property
    def attribute_list(self) -> tuple[str, ...]:
        return tuple(part.strip() for part in self.attributes.split("|") if part.strip())

    @property
    def prompts(self) -> tuple[SliderPrompts, ...]:
        """The three prompts, once for each attribute."""
        texts = (self.target, self.positive, self.negative)
        return tuple(
            SliderPrompts(*(_add_attribute(text, attribute) for text in texts))
            for attribute in self.attribute_list or ("",)
        )


def _add_attribute(prompt: str, attribute: str) -> str:
    """Put it where the prompt has a place for it, or in front, as the authors' scripts do."""
    if ATTRIBUTE in prompt:
        return prompt.replace(ATTRIBUTE, attribute)
    return f"{attribute} {prompt}".strip()
