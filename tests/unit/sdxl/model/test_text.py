"""Text embeddings: a batch gives the same as single captions, whatever their lengths."""

import pytest
import torch

from trainers.embedded_base.sdxl.architecture import build_text_encoders, build_unet
from trainers.sdxl.model.text import encode_captions, match_lengths


@pytest.fixture(scope="module")
def encoders():
    torch.manual_seed(0)
    return [encoder.eval() for encoder in build_text_encoders()]


@torch.no_grad()
def test_states_are_penultimate_and_the_pooled_embedding_is_of_the_end_token(encoders):
    embeddings = encode_captions(*encoders, ["a red circle"])
    ids = torch.tensor([[49406, 320, 736, 7117, 49407] + [0] * 72])
    output = encoders[1](ids, output_hidden_states=True)
    torch.testing.assert_close(embeddings.prompt_embeds[..., 64:], output.hidden_states[-2])
    states = encoders[1].get_submodule("text_model.final_layer_norm")(output.hidden_states[-1])
    torch.testing.assert_close(embeddings.pooled_prompt_embeds, encoders[1].text_projection(states[:, 4]))


@torch.no_grad()
def test_a_batch_of_captions_gives_the_same_as_single_captions(encoders):
    captions = ["a red circle", "a blue square on a black background", ""]
    batch = encode_captions(*encoders, captions)
    for row, caption in enumerate(captions):
        single = encode_captions(*encoders, [caption])
        torch.testing.assert_close(batch.prompt_embeds[row], single.prompt_embeds[0])
        torch.testing.assert_close(batch.pooled_prompt_embeds[row], single.pooled_prompt_embeds[0])


@torch.no_grad()
def test_a_long_caption_does_not_change_a_short_one_in_its_batch(encoders):
    """If all tokens are repeated equally often, attention does not change, and so the UNet's
    prediction does not either.
    """
    torch.manual_seed(0)
    unet = build_unet().eval()
    single = encode_captions(*encoders, ["a red circle"])
    batch = encode_captions(*encoders, ["a red circle", "word " * 160])
    assert batch.prompt_embeds.shape[1] == 3 * 77
    latents = torch.randn(1, 4, 8, 8)
    predictions = [
        unet(
            latents,
            500,
            states[:1],
            added_cond_kwargs={"text_embeds": single.pooled_prompt_embeds, "time_ids": torch.ones(1, 6)},
        ).sample
        for states in (single.prompt_embeds, batch.prompt_embeds)
    ]
    torch.testing.assert_close(*predictions, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_last_word_of_a_long_caption_counts(encoders):
    first, second = (encode_captions(*encoders, ["word " * 200 + last]).prompt_embeds for last in ("circle", "square"))
    assert not torch.equal(first, second)


def test_lengths_are_repeated_to_their_least_common_multiple():
    matched = match_lengths([torch.zeros(1, 154, 2), torch.zeros(1, 231, 2)])
    assert [states.shape[1] for states in matched] == [462, 462]
