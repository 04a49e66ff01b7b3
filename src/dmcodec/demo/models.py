"""The codecs that the page offers: loaded when first chosen, the last few kept."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dmcodec.codec.checkpoint import BUNDLED_ID
from dmcodec.codec.engine import TorchCodec
from dmcodec.codec.model import Codec, load

_MAX_LOADED = 2
"""A codec of full size takes 0.3 GB."""


class Refused(ValueError):
    """Something that a visitor asked for cannot be had; the message is a sentence for the page."""


@dataclass(frozen=True, eq=False)
class Model:
    """A codec that is loaded, as it writes `.dmc` files."""

    engine: TorchCodec

    @property
    def codec(self) -> Codec:
        """The codec itself."""
        return self.engine.codec

    def describe(self) -> str:
        """One line for the page."""
        config = self.codec.config
        return (
            f"{config.quantizer.num_codebooks} books of {config.quantizer.codebook_size} codes, "
            f"{config.frame_rate:g} frames a second, {config.bitrate_kbps:g} kbps at "
            f"{config.sample_rate / 1000:g} kHz"
        )


class Models:
    """What visitors may choose from.

    Not safe for threads: the page asks in one at a time.
    """

    def __init__(
        self, names: Sequence[str] = (), *, device: torch.device | None = None, is_open: bool
    ) -> None:
        """Loads nothing yet.

        Args:
            names: codec folders and Hugging Face ids, the first one is chosen at the beginning;
                none: the bundled model alone.
            device: where codecs run; None: the CPU.
            is_open: visitors may name others. For pages that strangers reach this must be False:
                else they could fill the disk from the Hub and look for folders.
        """
        self.names = list(dict.fromkeys(names)) or [BUNDLED_ID]
        self.is_open = is_open
        self._device = device or torch.device("cpu")
        self._loaded: OrderedDict[str, Model] = OrderedDict()

    def get(self, name: str | None) -> Model:
        """The model; raises Refused where there is none of that name, or it is damaged."""
        name = (name or "").strip() or self.names[0]
        if name not in self.names and not self.is_open:
            raise Refused(f"{name} is not among the models of this page: {', '.join(self.names)}")
        if name not in self._loaded:
            try:
                codec = load(None if name == BUNDLED_ID else name).to(self._device)
            except (ValueError, OSError) as problem:
                raise Refused(f"The model cannot be loaded: {problem}") from problem
            codec.decode(codec.encode(torch.zeros(codec.config.sample_rate)))  # it sets up
            self._loaded[name] = Model(TorchCodec(codec))
            if len(self._loaded) > _MAX_LOADED:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(name)
        return self._loaded[name]
