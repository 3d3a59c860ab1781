"""The objective against numbers that were computed by hand or measured in other programs."""

import pytest
import torch

from trainers.sdxl.model.noise_schedule import alphas_cumprod
from trainers.sdxl.model.size_ids import size_ids
from trainers.sdxl.objective import add_noise, min_snr_weights, snr_weights, training_target
from trainers.training.loss import per_sample_loss
from trainers.training.masks import mask_weights


def test_the_schedule_has_sdxls_noise_levels():
    alphas = alphas_cumprod(zero_terminal_snr=False)
    sigmas = ((1 - alphas) / alphas).sqrt()
    # ComfyUI and k-diffusion: sigma_min 0.0292, sigma_max 14.6146.
    torch.testing.assert_close(sigmas[[0, 999]], torch.tensor([0.02916753, 14.61464119]), rtol=1e-4, atol=0)


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_first_step():
    plain, rescaled = alphas_cumprod(zero_terminal_snr=False), alphas_cumprod(zero_terminal_snr=True)
    assert rescaled[999] == 0
    torch.testing.assert_close(rescaled[0], plain[0], rtol=1e-5, atol=0)


def test_noise_and_targets_of_one_value():
    latents, noise, alphas = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0), torch.tensor([0.64])
    assert add_noise(latents, noise, alphas).item() == pytest.approx(0.8 * 2 + 0.6 * 3)
    assert training_target(latents, noise, alphas, prediction_type="epsilon").item() == 3
    assert training_target(latents, noise, alphas, prediction_type="v_prediction").item() == pytest.approx(
        0.8 * 3 - 0.6 * 2
    )


def test_an_unknown_prediction_type_is_an_error():
    with pytest.raises(ValueError, match="prediction_type must be epsilon or v_prediction, got 'sample'"):
        training_target(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.tensor([0.5]), prediction_type="sample")


def test_min_snr_weights_agree_with_the_formula_for_both_prediction_types():
    snr = torch.tensor([0.5, 5.0, 50.0])
    alphas = snr / (1 + snr)
    torch.testing.assert_close(
        min_snr_weights(alphas, gamma=5.0, prediction_type="epsilon"), torch.tensor([1.0, 1.0, 0.1])
    )
    torch.testing.assert_close(
        min_snr_weights(alphas, gamma=5.0, prediction_type="v_prediction"), torch.tensor([0.5 / 1.5, 5 / 6, 5 / 51])
    )


@pytest.mark.parametrize("weighting", ["min_snr", "soft_min_snr"])
def test_gamma_0_weighs_all_timesteps_alike(weighting):
    assert snr_weights(torch.tensor([0.1, 0.9]), weighting, gamma=0.0, prediction_type="epsilon").tolist() == [1, 1]


@pytest.mark.parametrize(
    ("weighting", "epsilon", "v"),
    [
        ("min_snr", [1, 1, 0.1], [0.5 / 1.5, 5 / 6, 5 / 51]),
        # the clean image's weight 1 / (1 / snr + 1 / gamma), in terms of the noise and of v
        ("soft_min_snr", [5 / 5.5, 0.5, 5 / 55], [2.5 / 5.5 / 1.5, 25 / 10 / 6, 250 / 55 / 51]),
        ("debiased", [1 / 0.5**0.5, 1 / 5**0.5, 1 / 50**0.5], [1 / 1.5, 1 / 6, 1 / 51]),
    ],
)
def test_weights_by_snr_follow_their_formulas(weighting, epsilon, v):
    snr = torch.tensor([0.5, 5.0, 50.0])
    for prediction_type, expected in (("epsilon", epsilon), ("v_prediction", v)):
        found = snr_weights(snr / (1 + snr), weighting, gamma=5.0, prediction_type=prediction_type)
        assert found.tolist() == pytest.approx(expected, rel=1e-4)


def test_debiased_weights_equal_those_of_sd_scripts():
    """apply_debiased_estimation of sd-scripts (library/custom_train_functions.py)."""
    alphas = alphas_cumprod(zero_terminal_snr=False)
    snr = torch.minimum(alphas / (1 - alphas), torch.full_like(alphas, 1000))
    for prediction_type, theirs in (("epsilon", 1 / torch.sqrt(snr)), ("v_prediction", 1 / (snr + 1))):
        ours = snr_weights(alphas, "debiased", gamma=5.0, prediction_type=prediction_type)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_an_unknown_weighting_is_an_error():
    with pytest.raises(ValueError, match="snr_weighting must be min_snr, soft_min_snr or debiased, got 'max'"):
        snr_weights(torch.tensor([0.5]), "max", gamma=5.0, prediction_type="epsilon")


def test_min_snr_uses_the_schedule_in_use():
    """sd-scripts computes its table before the rescale to zero terminal SNR: 0.01415 at t=900
    instead of 0.00296.
    """
    alphas = alphas_cumprod(zero_terminal_snr=True)
    weights = min_snr_weights(alphas[[900, 999]], gamma=5.0, prediction_type="v_prediction")
    assert weights[0].item() == pytest.approx(0.00296, rel=1e-2)
    assert weights[1].item() == 0
    assert min_snr_weights(alphas[[999]], gamma=5.0, prediction_type="epsilon").item() == 1


def test_losses_are_means_per_sample_in_float32():
    prediction = torch.tensor([[1.0, 3.0], [0.0, 0.0]], dtype=torch.bfloat16).reshape(2, 1, 1, 2)
    losses = per_sample_loss(prediction, torch.zeros(2, 1, 1, 2))
    assert losses.dtype == torch.float32
    assert losses.tolist() == [5.0, 0.0]


def test_masked_out_positions_count_with_unmasked_weight():
    mask = torch.tensor([1.0, 0.5, 0.05, 0.0]).reshape(1, 1, 2, 2)
    assert mask_weights(mask, unmasked_weight=0.1, normalize=False).flatten().tolist() == pytest.approx(
        [1.0, 0.5, 0.1, 0.1]
    )
    assert torch.equal(mask_weights(mask, unmasked_weight=0.0, normalize=False), mask)
    assert mask_weights(mask, unmasked_weight=1.0, normalize=False).tolist() == torch.ones(1, 1, 2, 2).tolist()


def test_each_normalized_mask_has_mean_one():
    masks = torch.stack([torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]), torch.ones(1, 2, 2)])
    assert mask_weights(masks, unmasked_weight=0.0, normalize=True)[0].flatten().tolist() == [4, 0, 0, 0]
    for unmasked_weight in (0.0, 0.1):
        assert mask_weights(masks, unmasked_weight=unmasked_weight, normalize=True).mean(
            dim=(1, 2, 3)
        ).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("unmasked_weight", [0.0, 0.1])
def test_a_black_mask_never_counts_as_a_whole_image(unmasked_weight):
    """All its weights are unmasked_weight: divided by their mean, the image would count like one
    without a mask.
    """
    weights = mask_weights(torch.zeros(1, 1, 2, 2), unmasked_weight=unmasked_weight, normalize=True)
    assert weights.flatten().tolist() == pytest.approx([unmasked_weight] * 4)


def test_with_unmasked_weight_0_a_masked_loss_equals_that_of_sd_scripts():
    """apply_masked_loss of sd-scripts 48d368f (library/custom_train_functions.py) and the means
    of its process_batch (train_network.py).
    """
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 2, 4, 8, 6, generator=generator)
    pixels, loss_weights = torch.rand(2, 64, 48, generator=generator), torch.tensor([1.0, 0.3])
    theirs = (prediction - target) ** 2 * torch.nn.functional.interpolate(pixels.unsqueeze(1), size=(8, 6), mode="area")
    theirs = (theirs.mean([1, 2, 3]) * loss_weights).mean()
    blocks = pixels.reshape(2, 8, 8, 6, 8).mean(dim=(2, 4))[:, None]
    ours = (
        per_sample_loss(prediction, target, mask_weights(blocks, unmasked_weight=0.0, normalize=False)) * loss_weights
    )
    torch.testing.assert_close(ours.mean(), theirs, rtol=1e-6, atol=0)


def test_weighted_losses_are_plain_means_over_all_positions():
    prediction = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    weights = torch.tensor([1.0, 0.5, 0.0, 0.25]).reshape(1, 1, 2, 2)
    assert per_sample_loss(prediction, torch.zeros(1, 3, 2, 2), weights).tolist() == [(1 + 0.5 * 4 + 0.25 * 16) / 4]
    assert torch.equal(
        per_sample_loss(prediction, torch.zeros(1, 3, 2, 2), torch.ones(1, 1, 2, 2)),
        per_sample_loss(prediction, torch.zeros(1, 3, 2, 2)),
    )


def test_size_ids_are_original_crop_and_target_with_height_first():
    assert size_ids((1080, 1920), (0, 10), (768, 1344)) == [1080, 1920, 0, 10, 768, 1344]
