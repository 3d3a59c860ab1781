"""The captioner on the card: the same texts, and nothing is left there."""

import pytest
import torch

from tests.data.make_tiny_florence2 import COLOURS, FOLDER
from tests.pretend_gpu import card
from tests.pretend_gpu.counts import counting
from tests.pretend_gpu.on_card.watching import CARD, free
from tests.unit.captions.test_florence2 import ANSWERS, IMAGES
from trainers.captions.florence2.captioner import Florence2Captioner


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def test_a_batch_of_captions_takes_few_copies_and_leaves_nothing(dtype):
    captioner = Florence2Captioner(FOLDER, dtype=dtype, place=lambda model: model.to(CARD))
    settings = {"prompt": "<CAPTION>", "num_beams": 3, "max_new_tokens": 50}
    captioner.describe(IMAGES[:1], **settings)
    with counting() as counts:
        texts = captioner.describe(IMAGES, **settings)
    assert texts == [ANSWERS["<CAPTION>"].format(colour) for colour in COLOURS]
    # the text's tokens, the pixels, and the answer
    assert len([place for place in counts.list_copies() if "captioner.py" in place]) <= 4, counts.list_copies()
    captioner.close()
    assert free() == 0


def test_too_many_images_at_once_give_an_error_that_says_what_to_lower():
    captioner = Florence2Captioner(FOLDER, dtype=torch.float32, place=lambda model: model.to(CARD))
    settings = {"prompt": "<CAPTION>", "num_beams": 3, "max_new_tokens": 50}
    captioner.describe(IMAGES[:1], **settings)
    card.set_total_bytes(free() + 2**18)
    try:
        with pytest.raises(RuntimeError, match=r"ran out of memory captioning 4 images at once. Lower batch_size"):
            captioner.describe(IMAGES, **settings)
    finally:
        card.set_total_bytes(card.DEFAULT_BYTES)
    captioner.close()
    assert free() == 0
