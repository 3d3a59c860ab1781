"""Which word of the captions the new tokens stand for. Imports no torch."""

from ..training.plan import TrainingPlan
from .config import SDXLConfig


def require_word(plan: TrainingPlan[SDXLConfig]) -> str:
    """Return the trigger word that num_new_tokens replaces; "" without new tokens.

    Raises:
        ValueError: the images have no trigger word, or several.
    """
    number = plan.settings.training.num_new_tokens
    if not number:
        return ""
    words = {plan.dataset.get_trigger_word(item.image) for item in plan.crops.items if not item.image.is_regularization}
    if len(words) > 1 or "" in words:
        found = ", ".join(sorted(words - {""}))
        raise ValueError(
            f"num_new_tokens is {number}: the new tokens stand for the trigger word, and "
            + (
                f"the images have several: {found}. Give all the same"
                if len(words - {""}) > 1
                else "not all images have one. Set trigger_word"
            )
        )
    return words.pop()
