"""How many steps a training has."""

from tests.unit.dataset.imagined import imagine_dataset
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.crop_plan import plan_crops
from trainers.sdxl.config import SDXLConfig
from trainers.training.schedule import plan_schedule


def test_the_schedule_counts_samples_batches_and_steps() -> None:
    config = SDXLConfig(train_batch_size=2, gradient_accumulation_steps=3, num_train_epochs=5)
    plan = plan_crops(imagine_dataset(7, num_repeats=3), BucketConfig(resolution=128), seed=0)
    schedule = plan_schedule(plan, config)
    assert (schedule.num_samples, schedule.num_batches, schedule.steps_per_epoch, schedule.total_steps) == (
        21,
        11,
        4,
        20,
    )
    assert schedule.num_epochs == 5 and schedule.times_seen("0.png") == 15 and schedule.num_partial_batches == 1
    assert schedule.pixels_per_step == 21 * 128 * 128 / 4
