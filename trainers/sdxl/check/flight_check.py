"""The flight check: what a training will do with a dataset and what it will cost, before any model
is loaded.

It plans the training as the trainer does, looks at every image once, and judges both. report.py
holds what was found, and drawing/ draws it.
"""

from collections.abc import Callable
from dataclasses import replace

from ...dataset.bucket_sizes import Size
from ...dataset.crop_plan import CropPlan
from ...dataset.dataset import Dataset
from ...dataset.report import DatasetReport
from ...training.plan import TrainingPlan, plan_training
from ...training.run_settings import RunSettings
from ..config import SDXLConfig
from .caption_findings import judge_alternatives, judge_lengths, judge_sameness, judge_trigger_words
from .check_finding import LEVELS, CheckFinding
from .config import FlightCheckConfig
from .cost import Cost, Surroundings, estimate_cost
from .cost_findings import judge_machine, judge_schedule
from .image_findings import gather_remarks, group_duplicates, judge_crops, judge_duplicates, judge_left_out, judge_masks
from .image_looks import look_at_images
from .report import FlightReport, ImageUse


def check_flight(
    dataset: Dataset,
    settings: RunSettings[SDXLConfig],
    check: FlightCheckConfig,
    surroundings: Surroundings,
    *,
    check_interrupted: Callable[[], None] = lambda: None,
    on_progress: Callable[[int, int, str], None] = lambda *_: None,
) -> FlightReport:
    """Plan the training as the trainer does, look at every image, and judge both. A dataset with
    nothing to train on is a finding, not an error.

    Raises:
        RuntimeError: the file of an image has changed since the folder was scanned.
        ModuleNotFoundError: find_near_duplicates is on, and ImageHash is not installed.
    """
    plan, refusals = _plan_if_possible(dataset, settings)
    crops = plan.crops if plan else _make_empty_crops(dataset)
    uses = _collect_uses(crops)
    looks = look_at_images(
        dataset.images,
        take_fingerprints=check.find_near_duplicates,
        check_interrupted=check_interrupted,
        on_progress=on_progress,
    )
    config = settings.training
    cost = estimate_cost(plan, surroundings) if plan else Cost()
    learned = [image for image in dataset.images if not image.is_regularization]
    duplicate_groups = group_duplicates(learned, looks)
    if not any(image.caption for image in dataset.images):
        refusals = []  # judge_left_out says the same
    findings = [
        *refusals,
        *_judge_settings(config),
        *judge_left_out(dataset, crops),
        *judge_crops(uses, settings.buckets),
        *judge_duplicates(duplicate_groups),
        *judge_masks(dataset.images, looks),
        *judge_lengths(dataset.images, settings.captions, seed=config.seed),
        *judge_trigger_words([(image, dataset.get_trigger_word(image)) for image in learned if image.caption]),
        *judge_alternatives(dataset.images, settings.captions),
        *judge_sameness(learned),
        *judge_schedule(learned, cost.schedule, config),
        *judge_machine(cost, surroundings, config),
    ]
    findings += gather_remarks(crops, findings)
    left_out = {finding.name for finding in crops.report.left_out}
    held_out = {item.image.name for item in plan.validation.held_out} if plan else set()
    return FlightReport(
        name=dataset.folder_name,
        stop_at=check.stop_at,
        uses=uses,
        num_images=sum(image.name not in left_out and image.name not in held_out for image in learned),
        num_regularization=sum(image.name not in left_out for image in dataset.images if image.is_regularization),
        num_left_out=len(left_out),
        summary=dataset.report.summary,
        num_masks=sum(look.mask_share is not None for look in looks.values()),
        cost=cost,
        findings=sorted(findings, key=lambda finding: -LEVELS.index(finding.level)),
        duplicate_groups=duplicate_groups,
        thumbnails={name: look.thumbnail for name, look in looks.items()},
    )


def _judge_settings(config: SDXLConfig) -> list[CheckFinding]:
    """Find what the trainer would refuse of the optimizer and of network_weights."""
    from ..start import check_settings  # diffusers takes seconds to import

    try:
        check_settings(config)
    except (ValueError, ImportError) as error:
        return [CheckFinding("error", "refused_by_trainer", f"the trainer would stop: {error}")]
    return []


def _plan_if_possible(
    dataset: Dataset, settings: RunSettings[SDXLConfig]
) -> tuple[TrainingPlan[SDXLConfig] | None, list[CheckFinding]]:
    """Plan as the trainer does. If it would refuse, return its message as a finding, and if
    possible the plan of a training that is less strict or has no prior preservation.
    """
    try:
        return plan_training(dataset, settings), []
    except ValueError as error:
        refusal = CheckFinding("error", "refused_by_trainer", f"the trainer would stop: {error}")
    if dataset.strict:
        plan, further = _plan_if_possible(replace(dataset, strict=False), settings)
    elif settings.training.prior_loss_weight:
        without_prior = replace(settings.training, prior_loss_weight=0.0)
        plan, further = _plan_if_possible(dataset, replace(settings, training=without_prior))
    else:
        return None, [refusal]
    return (replace(plan, settings=settings), [refusal, *further]) if plan else (None, [refusal])


def _make_empty_crops(dataset: Dataset) -> CropPlan:
    return CropPlan([], DatasetReport(0, dataset.report.left_out, dataset.report.notes), {})


def _collect_uses(crops: CropPlan) -> list[ImageUse]:
    """Collect every image once per size. Random crops differ in each repeat: take the first."""
    uses: dict[tuple[str, Size], ImageUse] = {}
    for item in crops.items:
        key = item.image.name, item.crop.target_hw
        known = uses.get(key)
        uses[key] = replace(known, num_samples=known.num_samples + 1) if known else ImageUse(item.image, item.crop, 1)
    return list(uses.values())
