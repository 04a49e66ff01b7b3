"""In which arithmetic the network computes; the quantizer is always float32 (quantizer.py)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

Precision = Literal["float32", "tf32", "bfloat16"]
"""float32: what the weights are, on GPUs too, where torch's convolutions would round to TF32.
tf32: products rounded to 10 bits, on NVIDIA GPUs since Ampere. bfloat16: autocast to 7 bits.
Codes of the last two differ in part from those of float32."""


def check_precision(precision: str, device: torch.device) -> Precision:
    """The name as a `Precision`; ValueError where there is none, or not on this device."""
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision!r}, not one of {', '.join(get_args(Precision))}")
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(f"precision tf32 is of CUDA devices, not of {device.type!r}")
    return precision  # type: ignore[return-value]


@contextmanager
def computing_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Inside, the networks of a codec on `device` compute in this precision."""
    if precision == "bfloat16":
        with torch.autocast(device.type, torch.bfloat16):
            yield
    elif device.type == "cuda":
        is_rounded = precision == "tf32"
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        try:
            torch.backends.cuda.matmul.allow_tf32 = is_rounded
            torch.backends.cudnn.allow_tf32 = is_rounded
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    else:
        yield
