"""The sizes of text encoders that the memory estimate needs."""

from dataclasses import dataclass

from ..training.adapter_shapes import LayerSize
from .model.sdxl_model import SDXLModel


@dataclass(frozen=True)
class TextEncoderShape:
    width: int
    num_layers: int
    num_parameters: int
    num_trained_layers: int

    def list_trained(self) -> list[LayerSize]:
        """List what is trained: per layer four linear layers from width to width, and two between
        width and 4 x width.
        """
        square, wider = LayerSize(self.width, self.width), LayerSize(4 * self.width, self.width)
        return self.num_trained_layers * [*(4 * [square]), wider, LayerSize(self.width, 4 * self.width)]


SDXL_TEXT_ENCODERS = (TextEncoderShape(768, 12, 123_060_480, 11), TextEncoderShape(1280, 32, 694_659_840, 32))


def text_encoder_shapes(model: SDXLModel) -> tuple[TextEncoderShape, ...]:
    """Return the shapes of the text encoders that the model has. The last layer of the first is
    never trained.
    """
    encoders = [
        (encoder, not_trained)
        for encoder, not_trained in ((model.text_encoder, 1), (model.text_encoder_2, 0))
        if encoder is not None
    ]
    return tuple(
        TextEncoderShape(
            encoder.config.hidden_size,
            encoder.config.num_hidden_layers,
            encoder.num_parameters(),
            encoder.config.num_hidden_layers - not_trained,
        )
        for encoder, not_trained in encoders
    )
