"""In which arithmetic the network computes; the quantizer is always float32 (quantizer.py)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import nn

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


def check_weights(codec: nn.Module) -> None:
    """Raises ValueError unless all floating-point weights are float32.

    A codec that was cast as a whole would fail within its first layer; its books, which are
    compared by small distances, would be rounded too.
    """
    for name, value in codec.state_dict().items():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise ValueError(
                f"the codec's weights ({name}) are {value.dtype}; encode and decode need float32: "
                "call codec.float(), and for faster networks set codec.precision = 'bfloat16'"
            )


@contextmanager
def computing_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Inside, the networks of a codec on `device` compute in this precision.

    Raises ValueError as `check_precision` does. On CUDA this sets what is the process's own:
    threads in different precisions disturb each other.
    """
    check_precision(precision, device)
    if precision == "bfloat16":
        with torch.autocast(device.type, torch.bfloat16):
            yield
    elif device.type == "cuda":
        switches = _rounding_switches()
        before = [getattr(place, name) for place, name, _ in switches]
        try:
            for place, name, values in switches:
                setattr(place, name, values[precision == "tf32"])
            yield
        finally:
            for (place, name, _), value in zip(switches, before, strict=True):
                setattr(place, name, value)
    else:
        yield


def _rounding_switches() -> list[tuple[Any, str, tuple[Any, Any]]]:
    """What rounds products on GPUs: (object, attribute, (value when off, when on)).

    torch has two interfaces, and refuses to read the old one where the new one was used.
    """
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    if hasattr(matmul, "fp32_precision"):
        places = (matmul, cudnn.conv, cudnn.rnn)
        return [(place, "fp32_precision", ("ieee", "tf32")) for place in places]
    return [(place, "allow_tf32", (False, True)) for place in (matmul, cudnn)]
