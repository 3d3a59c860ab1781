"""Join Datasets: combines several folders for one training, each with its own repeats, weight and
trigger word, or as regularization images.
"""

from typing import Any

from comfy_api.latest import io

from ..trainers.dataset.join import join_datasets
from .host.progress import ComfyHost
from .sockets import CATEGORY, ID_PREFIX, TrainingDataset

MAX_DATASETS = 8


class JoinDatasets(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=ID_PREFIX + "JoinDatasets",
            display_name="Join Datasets (LoRA Trainer)",
            category=CATEGORY,
            description="Trains on several datasets at once. Set the repeats, the loss weight, the trigger word and "
            "whether the images are for regularization in each Load Images; the report says what became "
            "of them.",
            search_aliases=[
                "JoinDatasets",
                "merge datasets",
                "combine datasets",
                "regularization",
                "several folders",
                "reg images",
                "multiple concepts",
            ],
            inputs=[_make_input(number) for number in range(1, MAX_DATASETS + 1)],
            outputs=[
                TrainingDataset.Output("dataset", tooltip="All images, in the order of the inputs, for Train LoRA."),
                io.String.Output(
                    "report",
                    tooltip="Every dataset with its number of images, repeats, weight and masks, and what was left "
                    "out, as text.",
                ),
            ],
        )

    @classmethod
    def execute(cls, **datasets: Any) -> io.NodeOutput:
        by_input = (datasets.get(f"dataset_{number}") for number in range(1, MAX_DATASETS + 1))
        joined = join_datasets([dataset for dataset in by_input if dataset is not None])
        report = joined.report.text()
        ComfyHost().send_text(report)
        return io.NodeOutput(joined, report, ui={"text": [report]})


def _make_input(number: int) -> io.Input:
    tooltip = (
        "From Load Images: usually your subject. At least one of the eight inputs must be connected."
        if number == 1
        else "Another dataset, such as one with is_regularization on. Usually 1 to 3 in all."
    )
    return TrainingDataset.Input(f"dataset_{number}", optional=True, tooltip=tooltip)
