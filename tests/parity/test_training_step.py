"""The first steps of the real trainer against an independent implementation of the formulas.

The reference shares only diffusers' UNet and VAE, the CLIP classes and the recorded draws (noise,
timesteps, captions) with the trainer. It implements LoRA layers, noise schedule, targets, masks,
loss weights, the frozen base's prediction, clipping and AdamW itself.
"""

import copy
import math
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.config import DatasetConfig
from trainers.dataset.join import join_datasets
from trainers.dataset.scan import scan_folder
from trainers.embedded_base.sdxl.architecture import build_text_encoders, build_unet, build_vae
from trainers.files.tensor_cache import TensorCache
from trainers.sdxl import prepared_model
from trainers.sdxl.config import SDXLConfig
from trainers.sdxl.model.noise_schedule import alphas_cumprod
from trainers.sdxl.model.sdxl_model import SDXLModel, build_model
from trainers.sdxl.prepare import prepare_sdxl
from trainers.sdxl.step import Batch
from trainers.training.console_host import ConsoleHost
from trainers.training.distributed import World
from trainers.training.loop import TrainingLoop
from trainers.training.plan import plan_training
from trainers.training.run_folder import RunFolder
from trainers.training.run_log import LoggedHost
from trainers.training.run_settings import RunSettings

COMMON = {
    "rank": 4,
    "alpha": 2.0,
    "learning_rate": 1e-3,
    "max_train_steps": 3,
    "train_batch_size": 2,
    "gradient_checkpointing": False,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0.0,
    "caption_dropout": 0.3,
    "max_grad_norm": 0.1,
    "mixed_precision": "no",
    "save_dtype": "fp32",
}
CASES = {
    "epsilon, min-SNR, noise offset": {"min_snr_gamma": 5.0, "noise_offset": 0.05},
    "v-prediction, zero terminal SNR, min-SNR": {
        "prediction_type": "v_prediction",
        "zero_terminal_snr": "on",
        "min_snr_gamma": 5.0,
    },
    "both text encoders": {
        "train_text_encoders": True,
        "text_encoder_learning_rate": 5e-4,
        "text_encoder_2_learning_rate": 2e-4,
        "min_snr_gamma": 0.0,
    },
    "gradient accumulation and checkpointing": {
        "train_batch_size": 1,
        "gradient_accumulation_steps": 3,
        "gradient_checkpointing": True,
    },
    "bucket of one": {"train_batch_size": 3, "target_modules": "attention"},
    "masks": {"unmasked_weight": 0.1, "caption_dropout": 0.0},
    "masks, normalized": {
        "unmasked_weight": 0.2,
        "normalize_masked_loss": True,
        "caption_dropout": 0.0,
        "train_batch_size": 3,
    },
    "masks, unmasked weight 0": {"unmasked_weight": 0.0, "caption_dropout": 0.0, "min_snr_gamma": 0.0},
    "regularization": {"caption_dropout": 0.0, "train_batch_size": 3, "num_train_epochs": 2},
    "prior preservation": {"prior_loss_weight": 0.7, "learning_rate": 3e-3},
    "prior preservation of a class prompt, v-prediction, both text encoders": {
        "prior_loss_weight": 1.5,
        "class_prompt": "an image of a thing",
        "prediction_type": "v_prediction",
        "train_text_encoders": True,
        "gradient_checkpointing": True,
        "learning_rate": 3e-3,
    },
}


@dataclass
class RecordedStep:
    batches: list[Batch]
    captions: list[list[str]]
    loss: float
    gradients: list[Tensor]
    weights: list[Tensor]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for i, (height, width) in enumerate([(64, 64), (80, 64), (64, 70)]):
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"zwx number {i}, " + "a very long caption " * (30 if i == 2 else 1))
    return folder


@pytest.fixture(scope="module")
def masked_images(images, tmp_path_factory):
    """The first image has a mask with hard edges, the second a soft one, the third none."""
    folder = shutil.copytree(images, tmp_path_factory.mktemp("masked") / "images")
    masks = torch.zeros(64, 64, dtype=torch.uint8), torch.arange(80 * 64).reshape(80, 64).remainder(256).to(torch.uint8)
    masks[0][13:50, 5:33] = 255
    for i, mask in enumerate(masks):
        Image.fromarray(mask.numpy()).save(folder / f"{i}-masklabel.png")
    return folder


REGULARIZATION_WEIGHT = 0.4


@pytest.fixture(scope="module")
def regularization_images(tmp_path_factory):
    """Two regularization images, for three samples per epoch."""
    folder = tmp_path_factory.mktemp("regularization")
    for i in range(2):
        Image.new("RGB", (64, 64), (200 * i, 90, 30)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"old thing {i}")
    return folder


def make_tiny_model() -> SDXLModel:
    """Make a model of the embedded base's shape with random weights, so without symmetries."""
    torch.manual_seed(0)
    encoder_1, encoder_2 = build_text_encoders()
    parts = {"unet": build_unet(), "text_encoder": encoder_1, "text_encoder_2": encoder_2, "vae": build_vae()}
    return build_model(
        {name: part.state_dict() for name, part in parts.items()},
        prediction_type="epsilon",
        zero_terminal_snr=False,
        name="tiny",
    )


@pytest.mark.parametrize("case", CASES)
def test_the_first_steps_equal_an_independent_implementation(
    case, images, masked_images, regularization_images, tmp_path, monkeypatch
):
    config = SDXLConfig(**{**COMMON, **CASES[case]})
    model = make_tiny_model()
    folder = masked_images if "masks" in case else images
    reference = Reference(copy.deepcopy(model), config, folder)
    regularization = regularization_images if case == "regularization" else None
    recorded = train_and_record(config, model, folder, tmp_path, monkeypatch, reference, regularization)
    for step, ours in enumerate(recorded, start=1):
        loss, gradients = reference.gradients(ours)
        assert ours.loss == pytest.approx(loss, rel=1e-6)
        theirs, mine = flatten_all(gradients), flatten_all(ours.gradients)
        assert compute_cosine(mine, theirs) > 1 - 1e-9
        # relative to the largest; the prior loss is a difference of nearly equal predictions
        rounding = 1e-4 if config.prior_loss_weight else 1e-5
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=rounding * float(theirs.abs().max()))
        reference.adamw_step(gradients, step)
        # The first Adam steps are almost the signs of the gradient, so single tiny entries may
        # differ: compare the whole update.
        start = flatten_all(reference.initial)
        update, expected = flatten_all(ours.weights) - start, flatten_all(reference.weights) - start
        assert compute_cosine(update, expected) > 1 - 1e-6
        torch.testing.assert_close(update.norm(), expected.norm(), rtol=1e-4, atol=0)


def train_and_record(
    config, model, images, tmp_path, monkeypatch, reference: "Reference", regularization_images: Path | None = None
) -> list[RecordedStep]:
    """Run the real loop, and record its batches, its gradients before the optimizer and its weights
    after it.
    """
    dataset = scan_folder(DatasetConfig(images=str(images), trigger_word="zwx"))
    if regularization_images:
        held = DatasetConfig(
            images=str(regularization_images), is_regularization=True, loss_weight=REGULARIZATION_WEIGHT
        )
        dataset = join_datasets([dataset, scan_folder(held)])
    plan = plan_training(dataset, RunSettings(config, BucketConfig(resolution=64)))
    steps: list[RecordedStep] = []
    with ConsoleHost(torch.device("cpu"), quiet=True) as host:
        run = prepare_sdxl(plan, model, host, cache=TensorCache(None), world=World())
        loop = TrainingLoop(run, plan, LoggedHost(host), RunFolder(tmp_path, "parity"), World())
        reference.adopt(run.adapted)
        batches: list[Batch] = []
        captions: list[list[str]] = []
        real_losses, real_embed = prepared_model.weighted_losses, run.embed

        def listen_to_losses(unet, batch, objective):
            batches.append(batch)
            return real_losses(unet, batch, objective)

        def listen_to_embed(texts):
            captions.append(texts)
            return real_embed(texts)

        monkeypatch.setattr(prepared_model, "weighted_losses", listen_to_losses)
        run.embed = listen_to_embed

        def before_step(optimizer, *_):
            weights = [group.weights for group in run.adapted.groups]
            gradients = [part.clone() for each in weights for part in each.split(each.flat.grad)]
            # leave out the class prompts, which are embedded after the captions of each batch
            steps.append(RecordedStep(list(batches), captions[:: len(captions) // len(batches)], 0.0, gradients, []))
            batches.clear()
            captions.clear()

        def after_step(optimizer, *_):
            steps[-1].weights = [matrix.clone() for matrix in run.adapted.name_parameters().values()]

        loop._optimizer_step._optimizer.register_step_pre_hook(before_step)
        loop._optimizer_step._optimizer.register_step_post_hook(after_step)
        result = loop.run()
    for step, loss in zip(steps, result.losses, strict=True):
        step.loss = loss
    return steps


class Reference:
    """SDXL LoRA training, implemented from the formulas."""

    def __init__(self, model: SDXLModel, config: SDXLConfig, folder: Path) -> None:
        self.model, self.config, self.folder = model, config, folder
        self.lora_is_on = True
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2
        alphas = torch.cumprod(1 - betas, dim=0)
        if config.zero_terminal_snr == "on":
            root = alphas.sqrt()
            alphas = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        # diffusers and sd-scripts convert the rescaled alphas to betas and multiply them again,
        # which rounds in the sixth digit. So the steps are compared on the schedule in use.
        in_use = alphas_cumprod(zero_terminal_snr=config.zero_terminal_snr == "on")
        torch.testing.assert_close(in_use, alphas, rtol=2e-5, atol=1e-8)
        self.alphas = in_use

    def adopt(self, adapted) -> None:
        """Take the initial LoRA weights by name, and hook LoRA layers into the reference's
        modules.
        """
        self.weights, self.rates = [], []
        self.rates = [group.learning_rate for group in adapted.groups for _ in group.weights.parameters]
        modules = {
            "unet": self.model.unet,
            "text_encoder": self.model.text_encoder,
            "text_encoder_2": self.model.text_encoder_2,
        }
        for component in modules.values():
            component.requires_grad_(False)
        for (component, path), module in adapted.read().items():
            down, up = module.down.clone().requires_grad_(True), module.up.clone().requires_grad_(True)
            self.weights += [down, up]
            named = {name.removeprefix("text_model."): layer for name, layer in modules[component].named_modules()}
            named[path].register_forward_hook(self._lora_hook(down, up))
        assert all(
            torch.equal(mine, theirs)
            for mine, theirs in zip(self.weights, adapted.name_parameters().values(), strict=True)
        )
        self.initial = [weight.detach().clone() for weight in self.weights]
        self.moments = [(torch.zeros_like(weight), torch.zeros_like(weight)) for weight in self.weights]

    def _lora_hook(self, down: Tensor, up: Tensor):
        strength = self.config.alpha / self.config.rank
        return lambda layer, inputs, output: (
            output + strength * (inputs[0] @ down.T @ up.T) if self.lora_is_on else output
        )

    def gradients(self, step: RecordedStep) -> tuple[float, list[Tensor]]:
        num_samples = sum(len(batch.timesteps) for batch in step.batches)
        total = torch.zeros(())
        for batch, captions in zip(step.batches, step.captions, strict=True):
            total = total + self._losses(batch, captions).sum() / num_samples
        gradients = torch.autograd.grad(total, self.weights)
        norm = torch.sqrt(sum(gradient.square().sum() for gradient in gradients))
        factor = min(1.0, self.config.max_grad_norm / (float(norm) + 1e-6))
        return float(total.detach()), [gradient * factor for gradient in gradients]

    def _losses(self, batch: Batch, captions: list[str]) -> Tensor:
        embeds, pooled = self._encode(captions)
        torch.testing.assert_close(batch.prompt_embeds, embeds, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(batch.pooled_prompt_embeds, pooled, rtol=1e-5, atol=1e-5)
        if not self.config.train_text_encoders:
            embeds, pooled = batch.prompt_embeds, batch.pooled_prompt_embeds
        alpha = self.alphas[batch.timesteps].reshape(-1, 1, 1, 1)
        noisy = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * batch.noise
        target = batch.noise
        if self.config.prediction_type == "v_prediction":
            target = alpha.sqrt() * batch.noise - (1 - alpha).sqrt() * batch.latents
        conditions = {"text_embeds": pooled, "time_ids": batch.add_time_ids}
        prediction = self.model.unet(noisy, batch.timesteps, embeds, added_cond_kwargs=conditions).sample
        losses = ((prediction - target) ** 2 * self._mask_weights(captions)).mean(dim=(1, 2, 3))
        if self.config.prior_loss_weight:
            losses = losses + self.config.prior_loss_weight * self._prior(batch, noisy, captions)
        if self.config.min_snr_gamma:
            snr = alpha.flatten() / (1 - alpha.flatten())
            capped = torch.minimum(snr, torch.full_like(snr, self.config.min_snr_gamma))
            losses = losses * capped / (snr + 1 if self.config.prediction_type == "v_prediction" else snr)
        return losses * torch.tensor(
            [REGULARIZATION_WEIGHT if caption.startswith("old") else 1.0 for caption in captions]
        )

    def _mask_weights(self, captions: list[str]) -> Tensor:
        """Compute the weights block by block, from the middle of the mask file, which is cropped
        like the image.
        """
        weights = torch.ones(len(captions), 1, 8, 8)
        for row, caption in enumerate(captions):
            path = self.folder / f"{caption[11:12]}-masklabel.png"
            if path.exists():
                mask = np.asarray(Image.open(path), dtype=np.float64) / 255
                top = (len(mask) - 64) // 2
                for y, x in np.ndindex(8, 8):
                    block = mask[top + 8 * y : top + 8 * y + 8, 8 * x : 8 * x + 8]
                    weights[row, 0, y, x] = max(block.mean(), self.config.unmasked_weight)
                if self.config.normalize_masked_loss:
                    weights[row] /= weights[row].mean()
        return weights

    def _prior(self, batch: Batch, noisy: Tensor, captions: list[str]) -> Tensor:
        whole = [caption or self._whole_caption(row, batch) for row, caption in enumerate(captions)]
        prompts = [self.config.class_prompt or caption.replace("zwx ", "") for caption in whole]
        predictions = []
        for self.lora_is_on in (False, True):
            embeds, pooled = self._encode(prompts)
            conditions = {"text_embeds": pooled, "time_ids": batch.add_time_ids}
            predictions.append(self.model.unet(noisy, batch.timesteps, embeds, added_cond_kwargs=conditions).sample)
        return ((predictions[1] - predictions[0].detach()) ** 2).mean(dim=(1, 2, 3))

    def _whole_caption(self, row: int, batch: Batch) -> str:
        """Find the dropped caption of a sample by its original size, which differs per image."""
        size = tuple(batch.add_time_ids[row, :2].int().tolist())
        return (self.folder / f"{[(64, 64), (80, 64), (64, 70)].index(size)}.txt").read_text()

    def _encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Encode chunk by chunk, with transformers' tokenizer. Shorter captions are repeated to the
        length of the longest (here 1 or 2 chunks).
        """
        rows, pooled = [], []
        for caption in captions:
            ids = make_reference_tokenizer()(caption)["input_ids"][1:-1]
            chunks = [ids[i : i + 75] for i in range(0, max(1, len(ids)), 75)]
            states = []
            for position, chunk in enumerate(chunks):
                padded = [[49406, *chunk, 49407] + [pad] * (75 - len(chunk)) for pad in (49407, 0)]
                first = self.model.text_encoder(torch.tensor([padded[0]]), output_hidden_states=True)
                second = self.model.text_encoder_2(torch.tensor([padded[1]]), output_hidden_states=True)
                states.append(torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1))
                if position == 0:
                    pooled.append(second.text_embeds)
            rows.append(torch.cat(states, dim=1))
        longest = max(row.shape[1] for row in rows)
        return torch.cat([row.repeat(1, longest // row.shape[1], 1) for row in rows]), torch.cat(pooled)

    @torch.no_grad()
    def adamw_step(self, gradients: list[Tensor], step: int) -> None:
        """Step AdamW (Loshchilov & Hutter 2019): betas 0.9, 0.999, eps 1e-8, weight decay 0.01."""
        for weight, gradient, rate, (first, second) in zip(
            self.weights, gradients, self.rates, self.moments, strict=True
        ):
            weight.mul_(1 - rate * 0.01)
            first.mul_(0.9).add_(0.1 * gradient)
            second.mul_(0.999).add_(0.001 * gradient**2)
            corrected = (second / (1 - 0.999**step)).sqrt() + 1e-8
            weight.sub_(rate * (first / (1 - 0.9**step)) / corrected)


@cache
def make_reference_tokenizer():
    """Make transformers' CLIPTokenizer from vocabulary files that are rebuilt from the merges."""
    import json
    import tempfile
    from pathlib import Path

    from transformers import CLIPTokenizer

    from trainers.captions.clip_tokenizer import MERGES_FILE, vocabulary

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary()))
        (Path(folder) / "merges.txt").write_bytes(MERGES_FILE.read_bytes())
        return CLIPTokenizer.from_pretrained(folder)


def flatten_all(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).double()


def compute_cosine(a: Tensor, b: Tensor) -> float:
    return float(nn.functional.cosine_similarity(a, b, dim=0).detach())


def test_latents_and_size_ids_of_a_batch_match_the_image(images, tmp_path, monkeypatch):
    """Latents are exactly the VAE's mean of the cropped pixels times 0.13025, size ids (original,
    crop, target), height first.
    """
    config = SDXLConfig(**{**COMMON, "train_batch_size": 3, "caption_dropout": 0.0})
    model = make_tiny_model()
    vae = copy.deepcopy(model.vae)
    recorded = train_and_record(
        config, model, images, tmp_path, monkeypatch, Reference(copy.deepcopy(model), config, images)
    )
    seen = {
        caption[:12]: (batch, row)
        for batch, captions in zip(recorded[0].batches, recorded[0].captions, strict=True)
        for row, caption in enumerate(captions)
    }
    expected = {"zwx number 0": (64, 64, 0, 0), "zwx number 1": (80, 64, 8, 0), "zwx number 2": (64, 70, 0, 3)}
    for i, (caption, (height, width, top, left)) in enumerate(expected.items()):
        batch, row = seen[caption]
        image = Image.open(images / f"{i}.png").crop((left, top, left + 64, top + 64))
        pixels = (
            torch.tensor(list(image.tobytes()), dtype=torch.float32)
            .reshape(1, 64, 64, 3)
            .permute(0, 3, 1, 2)
            .contiguous()
            / 127.5
            - 1
        )
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.mean * 0.13025
        assert torch.equal(batch.latents[row], latents[0])
        assert batch.add_time_ids[row].tolist() == [height, width, top, left, 64, 64]
    assert math.isfinite(recorded[0].loss)
