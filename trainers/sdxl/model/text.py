"""Encodes captions for SDXL's UNet: the hidden states of both text encoders and the pooled
embedding.

Letters: B captions, S tokens (77 for each chunk of 75), E embedding width (768 + 1280 in SDXL), P
pooled width (1280).
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ...captions.clip_tokenizer import END_TOKEN, tokenize
from ...training.transfer import move_together

PAD_TOKENS = (END_TOKEN, 0)  # text encoder 1 pads with END, text encoder 2 with 0, as ComfyUI and sd-scripts do


class Tokenize(Protocol):
    """clip_tokenizer.tokenize, or what does the same for encoders with new tokens."""

    def __call__(self, captions: list[str], *, pad_token: int) -> list[Tensor]: ...


@dataclass(frozen=True)
class TextEmbeddings:
    """prompt_embeds [B, S, E] and pooled_prompt_embeds [B, P]."""

    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor


def encode_captions(
    text_encoder: CLIPTextModel,
    text_encoder_2: CLIPTextModelWithProjection,
    captions: list[str],
    tokenize: Tokenize = tokenize,
) -> TextEmbeddings:
    """Return the penultimate hidden states of both encoders without the final norm, concatenated,
    and the second encoder's projection of the END token.

    A long caption is encoded in chunks whose states are concatenated; the pooled embedding is that
    of the first chunk. `match_lengths` repeats captions with fewer chunks than others.
    """
    tokens = move_together([tokenize(captions, pad_token=pad) for pad in PAD_TOKENS], text_encoder.device)
    encoded = []
    for ids_1, ids_2 in zip(*tokens, strict=True):
        states_1 = text_encoder(ids_1, output_hidden_states=True).hidden_states[-2]
        output_2 = text_encoder_2(ids_2, output_hidden_states=True)
        states = torch.cat([states_1, output_2.hidden_states[-2]], dim=-1)  # [chunks, 77, E]
        encoded.append(TextEmbeddings(states.flatten(0, 1)[None], output_2.text_embeds[:1]))
    return stack_embeddings(encoded)


def stack_embeddings(embeddings: list[TextEmbeddings]) -> TextEmbeddings:
    """Stack the embeddings of several captions to one batch."""
    return TextEmbeddings(
        torch.cat(match_lengths([embedding.prompt_embeds for embedding in embeddings])),
        torch.cat([embedding.pooled_prompt_embeds for embedding in embeddings]),
    )


def match_lengths(prompt_embeds: list[Tensor]) -> list[Tensor]:
    """Repeat each [1, S, E] up to the least common multiple of all S.

    If all tokens are repeated equally often, attention over them gives the same result, so a long
    caption in the batch does not change a short one. ComfyUI matches its conditionings the same
    way.
    """
    length = math.lcm(*(states.shape[1] for states in prompt_embeds))
    return [states.repeat(1, length // states.shape[1], 1) for states in prompt_embeds]
