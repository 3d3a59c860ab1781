"""Which text a sample gets in a step."""

from pathlib import Path

from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.caption_variants import CaptionConfig
from trainers.dataset.crop_plan import plan_crops
from trainers.dataset.dataset import Dataset
from trainers.dataset.image import TrainingImage
from trainers.dataset.report import DatasetReport
from trainers.training.config import TrainingConfig
from trainers.training.texts import TrainingTexts

CAPTION = "a, b, c, d, e, f"
IMAGE = TrainingImage("0.png", Path("x"), "0" * 64, (1024, 1024), CAPTION, False)
DATASET = Dataset([IMAGE], 1, "", DatasetReport(1), "imagined")
(ITEM,) = plan_crops(DATASET, BucketConfig(), seed=0).items


def make_texts(*, captions: CaptionConfig | None = None, **settings: object) -> TrainingTexts:
    return TrainingTexts(DATASET, [ITEM], TrainingConfig(**settings), captions or CaptionConfig())


def test_caption_dropout_drops_its_share_of_captions():
    texts = make_texts(caption_dropout=0.25)
    dropped = sum(texts.choose_caption(ITEM, step) == "" for step in range(2000))
    assert abs(dropped / 2000 - 0.25) < 0.03


def test_variants_are_drawn_equally_often_and_do_not_change_dropout():
    plain = make_texts(caption_dropout=0.25)
    varied = make_texts(caption_dropout=0.25, captions=CaptionConfig(shuffle_captions=True, num_caption_variants=8))
    drawn = [varied.choose_caption(ITEM, step) for step in range(800)]
    assert [text == "" for text in drawn] == [plain.choose_caption(ITEM, step) == "" for step in range(800)]
    counts = {text: drawn.count(text) for text in set(drawn) - {""}}
    assert len(counts) == 8 and min(counts.values()) > 45


def test_a_class_prompt_is_never_dropped():
    texts = make_texts(caption_dropout=1.0, prior_loss_weight=1.0, class_prompt="a dog | a cat")
    assert {texts.choose_class_prompt(ITEM, step) for step in range(50)} == {"a dog", "a cat"}
