"""New tokens of SDXL's text encoders: their vectors, and captions that have them.

Letters: B captions, S tokens, E width of a text encoder, N new tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..captions.clip_tokenizer import split_into_chunks, token_ids
from ..dataset.trigger_word import make_word_pattern
from .model.sdxl_model import SDXLModel


class NewTokenEmbedding(nn.Module):
    """A text encoder's frozen table of vectors, and those of new tokens: `vectors` [N, E], which
    are the ids -1, -2 and so on. Encoders look for the END token by the highest id.
    """

    def __init__(self, table: nn.Embedding, first_ids: Sequence[int]) -> None:
        super().__init__()
        self.table = table
        self.vectors = nn.Parameter(table.weight.detach()[list(first_ids)].float())

    def forward(self, ids: Tensor) -> Tensor:
        """[B, S] -> [B, S, E]"""
        known = self.table(ids.clamp(min=0))
        new = functional.embedding((-ids - 1).clamp(min=0), self.vectors)
        return torch.where((ids < 0).unsqueeze(-1), new.to(known.dtype), known)


@dataclass(frozen=True)
class NewTokens:
    """Stand for `word` in captions."""

    word: str
    clip_l: NewTokenEmbedding
    clip_g: NewTokenEmbedding

    def parameters(self) -> dict[str, nn.Parameter]:
        """By their names in embedding files of SDXL."""
        return {"clip_l": self.clip_l.vectors, "clip_g": self.clip_g.vectors}

    def tokenize(self, captions: list[str], *, pad_token: int) -> list[Tensor]:
        """Return the token ids of each caption as clip_tokenizer does, with the new tokens wherever
        it has the word.
        """
        return [split_into_chunks(self._list_ids(caption), pad_token=pad_token) for caption in captions]

    def _list_ids(self, caption: str) -> list[int]:
        new = [-number for number in range(1, len(self.clip_l.vectors) + 1)]
        first, *others = token_ids(make_word_pattern(self.word).split(caption))
        return first + [each for ids in others for each in (*new, *ids)]


def add_new_tokens(model: SDXLModel, word: str, *, number: int, initializer: str) -> NewTokens:
    """Give both text encoders new tokens that start as those of the initializer, or of the word, in
    turn.
    """
    assert model.text_encoder is not None and model.text_encoder_2 is not None
    (ids,) = token_ids([initializer.strip() or word])
    first_ids = [ids[index % len(ids)] for index in range(number)]
    embeddings = []
    for encoder in (model.text_encoder, model.text_encoder_2):
        table = encoder.get_input_embeddings()
        assert isinstance(table, nn.Embedding)
        embeddings.append(NewTokenEmbedding(table, first_ids))
        encoder.set_input_embeddings(embeddings[-1])
    return NewTokens(word, *embeddings)
