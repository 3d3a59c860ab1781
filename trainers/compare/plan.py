"""What a comparison draws: a column for every LoRA at every strength, a row for every prompt with
every seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..wording import pluralize
from .checkpoints import Checkpoint
from .config import CompareConfig, parse_seeds, parse_strengths

TRIGGER = "{trigger}"
MAX_IMAGES = 400


@dataclass(frozen=True)
class Column:
    """A LoRA at a strength. `number` counts LoRAs from 1; 0 is the model without LoRA."""

    number: int
    strength: float = 0.0


@dataclass(frozen=True)
class Row:
    prompt: str
    seed: int


@dataclass(frozen=True)
class ComparePlan:
    """`size_hw` is that of each image in pixels."""

    checkpoints: tuple[Checkpoint, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    size_hw: tuple[int, int]
    num_steps: int

    @property
    def num_images(self) -> int:
        return len(self.columns) * len(self.rows)

    @property
    def num_sampler_steps(self) -> int:
        return self.num_images * self.num_steps

    def find_number(self, choice: int) -> int:
        """The number in the grid of the chosen LoRA; 0 chooses the last one.

        Raises:
            ValueError: there is no such number.
        """
        if not 0 <= choice <= len(self.checkpoints):
            raise ValueError(
                f"choose must be a number in the grid, 1 to {len(self.checkpoints)}, or 0 for the last; got {choice}"
            )
        return choice or len(self.checkpoints)

    def write_prompt(self, column: Column, prompt: str) -> str:
        """The prompt with the column's trigger word. Without LoRA: that of the first LoRA."""
        return prompt.replace(TRIGGER, self.checkpoints[max(column.number, 1) - 1].trigger_word)

    def show_prompt(self, prompt: str) -> str:
        """The prompt for the whole row: with the trigger word, unless the LoRAs have different
        ones.
        """
        words = {checkpoint.trigger_word for checkpoint in self.checkpoints}
        return prompt.replace(TRIGGER, words.pop()) if len(words) == 1 else prompt

    def describe_column(self, column: Column) -> str:
        if not column.number:
            return "without LoRA"
        return f"{column.number}: {self.checkpoints[column.number - 1].name}, strength {column.strength:g}"


def plan_comparison(checkpoints: Sequence[Checkpoint], prompts: Sequence[str], config: CompareConfig) -> ComparePlan:
    """Decide what is drawn, and in which order.

    Raises:
        ValueError: there is nothing to compare or too much, or a LoRA has no trigger word and a
            prompt needs it.
    """
    if not checkpoints:
        raise ValueError("there is no LoRA to compare. Name a run or LoRA files, one in each line")
    strengths, seeds = parse_strengths(config.strengths), parse_seeds(config.seeds)
    base = [Column(0)] if config.show_base or 0 in strengths else []
    numbers = range(1, len(checkpoints) + 1)
    columns = [*base, *(Column(number, strength) for number in numbers for strength in strengths if strength)]
    plan = ComparePlan(
        tuple(checkpoints),
        tuple(columns),
        tuple(Row(prompt, seed) for prompt in prompts for seed in seeds),
        config.size_hw,
        config.steps,
    )
    _require_few_images(plan, len(base))
    _require_trigger_words(plan)
    return plan


def _require_few_images(plan: ComparePlan, num_base_columns: int) -> None:
    if plan.num_images <= MAX_IMAGES:
        return
    num_loras, num_columns, num_rows = len(plan.checkpoints), len(plan.columns), len(plan.rows)
    num_strengths = (num_columns - num_base_columns) // num_loras
    raise ValueError(
        f"{pluralize(num_columns, 'column')} ({pluralize(num_loras, 'LoRA')}, {pluralize(num_strengths, 'strength')}) "
        f"and {pluralize(num_rows, 'row')} of prompts and seeds are {plan.num_images} images; at most {MAX_IMAGES} are "
        "drawn. Give fewer LoRAs, strengths, prompts or seeds"
    )


def _require_trigger_words(plan: ComparePlan) -> None:
    if not any(TRIGGER in row.prompt for row in plan.rows):
        return
    for checkpoint in plan.checkpoints:
        if not checkpoint.trigger_word:
            raise ValueError(
                f"{checkpoint.source}: its header names no trigger word for {TRIGGER}. Write the word into the prompts"
            )
