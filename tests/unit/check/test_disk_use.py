"""How many bytes a training writes."""

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.dataset.imagined import imagine_dataset
from trainers.check.disk_use import DiskUse, estimate_disk_use
from trainers.check.family_check import CacheSizes
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.dataset import Dataset
from trainers.sdxl.check.family_check import LATENT_BYTES_PER_PIXEL, MASK_BYTES_PER_PIXEL, SDXLCheck
from trainers.sdxl.config import SDXLConfig
from trainers.training.plan import plan_training
from trainers.training.run_settings import RunSettings

CACHE = CacheSizes(LATENT_BYTES_PER_PIXEL, MASK_BYTES_PER_PIXEL, captions_bytes=0.0)


def estimate(
    dataset: Dataset, *, resolution: int = 1024, flip: bool = False, parameters: int = 1, **settings: Any
) -> DiskUse:
    buckets = BucketConfig(resolution=resolution, random_flip=flip)
    plan = plan_training(dataset, RunSettings(SDXLConfig(**settings), buckets))
    return estimate_disk_use(plan, CACHE, num_parameters=parameters)


def test_latents_bytes_match_what_the_cache_writes() -> None:
    from safetensors.torch import save
    from torch import zeros

    disk = estimate(imagine_dataset(3), flip=True, parameters=1000)
    file_bytes = len(save({"latents": zeros(4, 128, 128)}))
    assert disk.latents_bytes == pytest.approx(2 * 3 * file_bytes, rel=0.01)
    assert disk.lora_bytes == 2000


def test_changed_copies_are_counted() -> None:
    dataset = imagine_dataset(3)
    masked = replace(dataset, images=[replace(image, mask_sha256=image.sha256) for image in dataset.images])
    plain = estimate(masked)
    for changes, num_latents, num_masks in (
        ({"color_aug": 0.1}, 5, 1),  # a mask has no colours
        ({"rotation_aug": 5.0}, 5, 5),
        ({"color_aug": 0.1, "rotation_aug": 5.0, "num_augmented_variants": 2}, 3, 3),
    ):
        buckets = BucketConfig(**changes)
        plan = plan_training(masked, RunSettings(SDXLConfig(), buckets))
        changed = estimate_disk_use(plan, CACHE, num_parameters=1)
        latents = estimate(dataset).latents_bytes
        masks = plain.latents_bytes - latents
        assert changed.latents_bytes == pytest.approx(num_latents * latents + num_masks * masks, rel=1e-6)


def test_captions_of_sdxl_match_what_the_cache_writes() -> None:
    from safetensors.torch import save
    from torch import zeros

    plan = plan_training(imagine_dataset(3), RunSettings(SDXLConfig(caption_dropout=0.0, validate_every_n_steps=-1)))
    embeddings = save({"prompt_embeds": zeros(1, 77, 2048).half(), "pooled_prompt_embeds": zeros(1, 1280).half()})
    num_texts = len(set(plan.texts.list_all()))
    assert SDXLCheck().estimate(plan).cache.captions_bytes == pytest.approx(num_texts * len(embeddings), rel=0.01)


def test_masks_count_once_even_if_images_are_flipped() -> None:
    from safetensors.torch import save
    from torch import zeros

    dataset = imagine_dataset(3)
    masked = replace(
        dataset, images=[replace(image, mask_sha256=image.sha256) for image in dataset.images[:2]] + dataset.images[2:]
    )
    plain, with_masks = (estimate(each, flip=True).latents_bytes for each in (dataset, masked))
    assert with_masks - plain == pytest.approx(2 * len(save({"mask": zeros(1, 128, 128)})), rel=0.02)


@pytest.mark.parametrize(
    ("settings", "number"), [({}, 0), ({"save_every_n_steps": 500}, 2), ({"save_every_n_epochs": 100}, 4)]
)
def test_checkpoints_are_counted_without_the_finished_lora(settings: dict, number: int) -> None:
    disk = estimate(imagine_dataset(3), resolution=128, max_train_steps=1500, **settings)
    assert disk.num_checkpoints == number


@pytest.mark.parametrize(
    ("settings", "num_extra", "state_bytes"),
    [
        ({}, 1, 3 * 4),
        ({"save_best": False}, 0, 3 * 4),
        ({"validate_every_n_steps": -1}, 0, 3 * 4),
        ({"ema_decay": 0.99}, 2, 4 * 4),
        ({"optimizer": "AdamW8bit"}, 1, 4 + 2),
    ],
)
def test_the_best_lora_the_average_and_two_states_count(settings: dict, num_extra: int, state_bytes: int) -> None:
    disk = estimate(imagine_dataset(3), resolution=128, max_train_steps=1500, parameters=100, **settings)
    assert disk.num_extra_loras == num_extra and disk.states_bytes == 2 * 100 * state_bytes
    assert disk.total_bytes == disk.latents_bytes + 200 * (1 + num_extra) + disk.states_bytes
