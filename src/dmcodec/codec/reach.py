"""How far the convolutions of encoder and decoder look: the context that pieces need."""

from typing import cast

from dmcodec.codec.conv import Conv1d, ConvTranspose1d
from dmcodec.codec.seanet import Decoder, DecoderBlock, Encoder


def encoder_reach(encoder: Encoder) -> int:
    """Samples on either side that a frame before the LSTM depends on, beyond its own."""
    reach, step = _padding(encoder.conv_in), 1
    for stride, block in zip(encoder.strides, encoder.blocks, strict=True):
        reach += step * sum(_padding(m) for m in block.modules() if isinstance(m, Conv1d))
        step *= stride
    return reach


def decoder_reach(decoder: Decoder) -> int:
    """Samples next to a cut after the LSTM that depend on what is beyond the cut."""
    reach = 0
    for stride, block in zip(
        decoder.strides, cast(list[DecoderBlock], decoder.blocks), strict=True
    ):
        upsample: ConvTranspose1d = block.upsample
        reach = reach * stride + max(upsample.trim_left, upsample.trim_right)
        reach += sum(_padding(m) for m in block.modules() if isinstance(m, Conv1d))
    return reach + _padding(decoder.conv_out)


def _padding(conv: Conv1d) -> int:
    return max(conv.padding_left, conv.padding_right)
