"""Token ids are CLIP's, in chunks as in ComfyUI."""

import pytest
import torch

from trainers.captions.clip_tokenizer import END_TOKEN, token_ids, tokenize


@pytest.mark.parametrize(
    ("caption", "ids"),
    [
        # Recorded from transformers' CLIPTokenizer with openai/clip-vit-large-patch14's files.
        ("a red circle", [320, 736, 7117]),
        (
            "zwx, 1girl (solo:1.2) \\(test\\)!",
            [89, 3561, 267, 272, 1611, 263, 5797, 281, 272, 269, 273, 264, 59, 263, 1628, 59, 7805],
        ),
        ("!!! ! hello!", [995, 256, 3306, 256]),
        ("I'VE ÀÉ_under_score", [328, 1200, 36149, 4166, 318, 1798, 318, 4431]),
        ("", []),
    ],
)
def test_ids_are_those_of_the_real_clip_vocabulary(caption, ids):
    assert token_ids([caption]) == [ids]


def test_a_short_caption_is_one_chunk_padded_as_each_encoder_expects():
    (chunk,) = tokenize(["a red circle"], pad_token=END_TOKEN)
    assert chunk.tolist() == [[49406, 320, 736, 7117, 49407] + [49407] * 72]
    (chunk,) = tokenize(["a red circle"], pad_token=0)
    assert chunk.tolist() == [[49406, 320, 736, 7117, 49407] + [0] * 72]


def test_a_long_caption_continues_in_more_chunks_to_its_last_word():
    (chunks,) = tokenize(["red " * 100 + "circle"], pad_token=END_TOKEN)
    assert chunks.shape == (2, 77)
    assert chunks[:, 0].tolist() == [49406, 49406] and chunks[0, -1] == 49407
    assert chunks[0, 1:-1].tolist() == [736] * 75
    assert chunks[1, 1:28].tolist() == [736] * 25 + [7117, 49407]


def test_exactly_75_tokens_fill_one_chunk():
    (chunks,) = tokenize(["red " * 75], pad_token=0)
    assert chunks.shape == (1, 77) and chunks[0, -1] == 49407


def test_an_empty_caption_is_one_chunk():
    (chunks,) = tokenize([""], pad_token=0)
    assert torch.equal(chunks, torch.tensor([[49406, 49407] + [0] * 75]))
