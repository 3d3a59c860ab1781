"""The order of an epoch."""

import os
import subprocess
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.dataset.imagined import make_dataset
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.crop_plan import plan_crops
from trainers.dataset.epochs import batch_epoch

ROOT = Path(__file__).parents[3]


@given(
    sizes=st.lists(
        st.tuples(st.sampled_from([512, 700, 1024, 1500]), st.sampled_from([512, 700, 1024, 1500])),
        min_size=1,
        max_size=12,
    ),
    num_repeats=st.integers(1, 4),
    batch_size=st.integers(1, 5),
    epoch=st.integers(1, 3),
)
@settings(max_examples=100, deadline=None)
def test_an_epoch_uses_every_image_exactly_num_repeats_times_and_no_batch_mixes_sizes(
    sizes, num_repeats, batch_size, epoch
):
    plan = plan_crops(make_dataset(*sizes, num_repeats=num_repeats), BucketConfig(), seed=0)
    batches = batch_epoch(plan.items, batch_size=batch_size, seed=0, epoch=epoch)
    assert sorted(item.index for batch in batches for item in batch) == list(range(len(sizes) * num_repeats))
    assert all(len({item.crop.target_hw for item in batch}) == 1 and len(batch) <= batch_size for batch in batches)
    assert batches == batch_epoch(plan.items, batch_size=batch_size, seed=0, epoch=epoch)


def test_epochs_and_seeds_have_different_orders():
    items = plan_crops(make_dataset(*[(1024, 1024)] * 20), BucketConfig(), seed=0).items
    orders = {
        tuple(item.index for (item,) in batch_epoch(items, batch_size=1, seed=seed, epoch=epoch))
        for seed in (0, 1)
        for epoch in (1, 2, 3)
    }
    assert len(orders) == 6


def test_the_order_and_the_crops_do_not_depend_on_the_process():
    code = """
from pathlib import Path
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.crop_plan import plan_crops
from trainers.dataset.dataset import Dataset
from trainers.dataset.epochs import batch_epoch
from trainers.dataset.image import TrainingImage
from trainers.dataset.report import DatasetReport
images = [TrainingImage(f"{i}.png", Path(f"{i}.png"), f"{i:064x}", (1100, 1500), "a toy", False) for i in range(6)]
dataset = Dataset(images, 1, "", DatasetReport(6), "images")
items = plan_crops(dataset, BucketConfig(resize_mode="random_crop"), seed=3).items
batches = batch_epoch(items, batch_size=2, seed=3, epoch=1)
print([[(item.index, item.crop.top_left_yx) for item in batch] for batch in batches])
"""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    items = plan_crops(make_dataset(*[(1100, 1500)] * 6), BucketConfig(resize_mode="random_crop"), seed=3).items
    here = [
        [(item.index, item.crop.top_left_yx) for item in batch]
        for batch in batch_epoch(items, batch_size=2, seed=3, epoch=1)
    ]
    assert outputs == {f"{here}\n"}
