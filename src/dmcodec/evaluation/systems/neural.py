"""Codecs that run in torch as systems: ours, the published checkpoints, and those in transformers.

Speech is resampled to the codec's rate before encoding; bits are codes times bits per code.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from math import log2, prod
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dmcodec.audio import Waveform, resample
from dmcodec.codec.model import Codec, Encoded
from dmcodec.codec.search_limits import check_search_width
from dmcodec.evaluation.systems.system import System, SystemFacts, SystemOutput, SystemSpec
from dmcodec.packages import import_package
from dmcodec.pretrained.models import find_model, import_transformers, load_weights, read_config

Result = TypeVar("Result")


def open_codec(spec: SystemSpec, device: str) -> System:
    """The codec of a `dmcodec`, `published` or `transformers` specification."""
    if spec.kind == "transformers":
        return TransformersCodec(spec, device)
    if spec.kind == "published":
        from dmcodec.codec.published import load_published

        config, separator, checkpoint = spec.argument.partition(",")
        if not separator:
            raise ValueError(
                f"published:{spec.argument}: write published:CONFIG.json,CHECKPOINT.pt"
            )
        return OurCodec(load_published(Path(config), Path(checkpoint)), spec, device)
    from dmcodec.codec.model import load

    return OurCodec(load(None if spec.argument == "bundled" else spec.argument), spec, device)


class OurCodec:
    """A `dmcodec.codec.model.Codec` with a range of its books."""

    def __init__(self, codec: Codec, spec: SystemSpec, device: str) -> None:
        config = codec.config
        self._codec = codec.to(device).eval()
        self._first, self._stop = _book_range(spec, config.quantizer.num_codebooks)
        self._search_width = check_search_width(spec.search_width)
        searched = f", search width {spec.search_width}" if spec.search_width > 1 else ""
        self._bits_per_code = log2(config.quantizer.codebook_size)
        books = self._stop - self._first
        self.facts = SystemFacts(
            identity=f"{codec.fingerprint()} books {self._first + 1}:{self._stop}{searched}",
            family=codec.model_id + searched,
            description=_with_books(codec.model_id, self._first, self._stop) + searched,
            nominal_kbps=config.frame_rate * books * self._bits_per_code / 1000,
            sample_rate=config.sample_rate,
            frame_rate=config.frame_rate,
            num_codebooks=books,
            first_codebook=self._first + 1,
            codebook_size=config.quantizer.codebook_size,
            num_parameters=codec.num_parameters,
            delay_samples=spec.delay_samples or 0,
        )

    def reconstruct(self, waveform: Waveform, sample_rate: int, utterance_id: str) -> SystemOutput:
        """Encodes with the books up to the last, decodes with the chosen ones."""
        rate = self._codec.config.sample_rate
        signal = resample(waveform, sample_rate, rate)

        def encode() -> Encoded:
            encoded = self._codec.encode(
                signal, num_codebooks=self._stop, search_width=self._search_width
            )
            return encoded.select_codebooks(self._first, self._stop)

        encoded, encode_s = _timed(encode, self._codec.device)
        decoded, decode_s = _timed(lambda: self._codec.decode(encoded), self._codec.device)
        codes = encoded.item(0).cpu().numpy()
        num_bits = round(codes.size * self._bits_per_code)
        return SystemOutput(decoded[0].cpu().numpy(), rate, num_bits, codes, encode_s, decode_s)

    def code_vectors(self, waveform: Waveform, sample_rate: int) -> NDArray[np.float32]:
        """The sum of the code vectors of the chosen books, [L, D], of a waveform [T]."""
        signal = resample(waveform, sample_rate, self._codec.config.sample_rate)
        encoded = self._codec.encode(signal, num_codebooks=self._stop)
        chosen = encoded.select_codebooks(self._first, self._stop)
        vectors = self._codec.quantizer.decode(chosen.codes, self._first)  # [1, D, L]
        return np.asarray(vectors[0].t().float().cpu().numpy())


class CodecFamily(Protocol):
    """How one family of transformers codecs is called; waveforms are [1, 1, T]."""

    def __call__(self, model: Any, folder: Path) -> "FamilyCalls":
        """The calls of a loaded model."""
        ...


@dataclass(frozen=True)
class FamilyCalls:
    """Numbers and calls of a loaded transformers codec.

    output_rate: of decoded waveforms; None when it is `sample_rate`.
    encode: (waveform [1, C, T], number of books) to codes [K, L] and whatever decode needs.
    decode: what encode gave, to [1, C, T'].
    vectors: codes [1, K, L] to the vectors that the decoder gets for them, [1, D, L].
    """

    sample_rate: int
    num_codebooks: int
    codebook_size: int
    frame_rate: float
    encode: Callable[[Tensor, int], tuple[Tensor, Any]]
    decode: Callable[[Any], Tensor]
    vectors: Callable[[Tensor], Tensor]
    num_channels: int = 1
    output_rate: int | None = None


class TransformersCodec:
    """A codec of `_FAMILIES`, by folder or Hub name, with its first books."""

    def __init__(self, spec: SystemSpec, device: str) -> None:
        transformers = import_transformers()
        folder = find_model(spec.argument, needs_tokenizer=False, needs_preprocessor=False)
        config = read_config(folder)
        if config.model_type not in _FAMILIES:
            raise ValueError(
                f"transformers:{spec.argument} is a {config.model_type!r}; codecs that are known "
                f"here: {', '.join(_FAMILIES)} (others: folder:DIR or command:TEMPLATE)"
            )
        model = load_weights(transformers.AutoModel, folder, device)
        self._calls = _FAMILIES[config.model_type](model, folder)
        first, self._books = _book_range(spec, self._calls.num_codebooks)
        if first:
            raise ValueError(f"{spec.name}: of transformers codecs only books from 1 on: @1:N")
        self._device = torch.device(device)
        shown = Path(spec.argument).name if Path(spec.argument).is_dir() else spec.argument
        name = f"{config.model_type} {shown}"
        self._rate = self._calls.sample_rate
        self._bits_per_code = log2(self._calls.codebook_size)
        self.facts = SystemFacts(
            identity=f"{_weights_hash(model)} books 1:{self._books} "
            f"transformers {transformers.__version__}",
            family=name,
            description=_with_books(name, 0, self._books),
            nominal_kbps=self._calls.frame_rate * self._books * self._bits_per_code / 1000,
            sample_rate=self._rate,
            frame_rate=self._calls.frame_rate,
            num_codebooks=self._books,
            codebook_size=self._calls.codebook_size,
            num_parameters=sum(p.numel() for p in model.parameters()),
            delay_samples=spec.delay_samples or 0,
        )

    @torch.inference_mode()
    def reconstruct(self, waveform: Waveform, sample_rate: int, utterance_id: str) -> SystemOutput:
        """Encodes and decodes; stereo models get the same signal twice, their mean is kept."""
        batch = self._as_batch(waveform, sample_rate)
        (codes, state), encode_s = _timed(
            lambda: self._calls.encode(batch, self._books), self._device
        )
        decoded, decode_s = _timed(lambda: self._calls.decode(state), self._device)
        num_bits = round(codes.numel() * self._bits_per_code)
        return SystemOutput(
            decoded[0].mean(dim=0).float().cpu().numpy(),
            self._calls.output_rate or self._rate,
            num_bits,
            codes.cpu().numpy(),
            encode_s,
            decode_s,
        )

    @torch.inference_mode()
    def code_vectors(self, waveform: Waveform, sample_rate: int) -> NDArray[np.float32]:
        """What the decoder gets for the codes of the chosen books, [L, D], of a waveform [T]."""
        codes, _ = self._calls.encode(self._as_batch(waveform, sample_rate), self._books)
        return np.asarray(self._calls.vectors(codes[None])[0].t().float().cpu().numpy())

    def _as_batch(self, waveform: Waveform, sample_rate: int) -> Tensor:
        """A waveform [T] as [1, C, T] at the codec's rate."""
        signal = torch.from_numpy(resample(waveform, sample_rate, self._rate)).to(self._device)
        return signal.expand(1, self._calls.num_channels, -1)


def _encodec(model: Any, folder: Path) -> FamilyCalls:
    config = model.config
    bits = log2(config.codebook_size)

    def encode(waveform: Tensor, books: int) -> tuple[Tensor, Any]:
        needed_kbps = books * bits * config.frame_rate / 1000
        kbps = min(k for k in config.target_bandwidths if k >= needed_kbps - 1e-6)
        mask = torch.ones_like(waveform[:, 0], dtype=torch.bool)
        output = model.encode(waveform, padding_mask=mask, bandwidth=kbps)
        chunks = [chunk[:, :books] for chunk in output.audio_codes]  # each [1, K, L]
        codes = torch.cat(chunks, dim=-1)[0]
        state = (torch.stack(chunks), output.audio_scales, mask, output.last_frame_pad_length)
        return codes, state

    def decode(state: Any) -> Tensor:
        codes, scales, mask, padding = state
        output = model.decode(codes, scales, mask, last_frame_pad_length=padding)
        return output.audio_values

    books = min(
        config.num_quantizers,
        round(max(config.target_bandwidths) * 1000 / (config.frame_rate * bits)),
    )
    return FamilyCalls(
        config.sampling_rate,
        books,
        config.codebook_size,
        config.frame_rate,
        encode,
        decode,
        lambda codes: model.quantizer.decode(codes.transpose(0, 1)),
        config.audio_channels,
    )


def _dac(model: Any, folder: Path) -> FamilyCalls:
    config = model.config

    def encode(waveform: Tensor, books: int) -> tuple[Tensor, Any]:
        codes = model.encode(_pad(waveform, config.hop_length), n_quantizers=books).audio_codes
        return codes[0], codes

    def decode(codes: Any) -> Tensor:
        return model.decode(audio_codes=codes).audio_values.reshape(1, 1, -1)

    frame_rate = config.sampling_rate / config.hop_length
    return FamilyCalls(
        config.sampling_rate,
        config.n_codebooks,
        config.codebook_size,
        frame_rate,
        encode,
        decode,
        lambda codes: model.quantizer.from_codes(codes)[0],
    )


def _mimi(model: Any, folder: Path) -> FamilyCalls:
    config = model.config

    def encode(waveform: Tensor, books: int) -> tuple[Tensor, Any]:
        codes = model.encode(waveform, num_quantizers=books).audio_codes
        return codes[0], codes

    def decode(codes: Any) -> Tensor:
        return model.decode(codes).audio_values

    return FamilyCalls(
        config.sampling_rate,
        config.num_quantizers,
        config.codebook_size,
        config.frame_rate,
        encode,
        decode,
        model.quantizer.decode,
    )


def _xcodec(model: Any, folder: Path) -> FamilyCalls:
    config = model.config

    def encode(waveform: Tensor, books: int) -> tuple[Tensor, Any]:
        bandwidth = max(config.target_bandwidths)
        codes = model.encode(_pad(waveform, config.hop_length), bandwidth=bandwidth).audio_codes
        return codes[0, :books], codes[:, :books]

    def decode(codes: Any) -> Tensor:
        return model.decode(codes).audio_values

    frame_rate = config.sample_rate / config.hop_length
    return FamilyCalls(
        config.sample_rate,
        config.num_quantizers,
        config.codebook_size,
        frame_rate,
        encode,
        decode,
        lambda codes: model.quantizer.decode(codes.transpose(0, 1)),
    )


def _xcodec2(model: Any, folder: Path) -> FamilyCalls:
    config = model.config
    return _with_features(model, folder, config.sampling_rate, config.hop_length)


def _neucodec(model: Any, folder: Path) -> FamilyCalls:
    config = model.config
    return _with_features(model, folder, config.input_sampling_rate, config.encoder_hop_length)


def _with_features(model: Any, folder: Path, sample_rate: int, hop_length: int) -> FamilyCalls:
    """Codecs of one book whose encoder also takes the features of an extractor."""
    import_package("torchaudio", f"the feature extractor of {model.config.model_type}")
    extractor = import_transformers().AutoFeatureExtractor.from_pretrained(folder)

    def encode(waveform: Tensor, books: int) -> tuple[Tensor, Any]:
        inputs = extractor(
            audio=waveform[0, 0].cpu().numpy(), sampling_rate=sample_rate, return_tensors="pt"
        ).to(waveform.device)
        codes = model.encode(**inputs).audio_codes
        return codes[0], codes

    def decode(codes: Any) -> Tensor:
        return model.decode(codes).audio_values

    return FamilyCalls(
        sample_rate,
        1,
        prod(model.config.quantization_levels),
        sample_rate / hop_length,
        encode,
        decode,
        lambda codes: model.quantizer.from_codes(codes.transpose(1, 2)).transpose(1, 2),
        output_rate=getattr(model.config, "output_sampling_rate", sample_rate),
    )


_FAMILIES: dict[str, CodecFamily] = {
    "encodec": _encodec,
    "dac": _dac,
    "mimi": _mimi,
    "xcodec": _xcodec,
    "xcodec2": _xcodec2,
    "neucodec": _neucodec,
}


def _book_range(spec: SystemSpec, num_codebooks: int) -> tuple[int, int]:
    """First book from 0 and stop; all books when the specification names none."""
    if spec.first_book is None or spec.last_book is None:
        return 0, num_codebooks
    if spec.last_book > num_codebooks:
        raise ValueError(
            f"{spec.name}: books {spec.first_book} to {spec.last_book} asked for, the codec has "
            f"{num_codebooks}"
        )
    return spec.first_book - 1, spec.last_book


def _with_books(name: str, first: int, stop: int) -> str:
    return f"{name}, book {stop}" if stop == first + 1 else f"{name}, books {first + 1} to {stop}"


def _pad(waveform: Tensor, hop_length: int) -> Tensor:
    """Zeros at the end until whole frames are full."""
    return nn.functional.pad(waveform, (0, -waveform.shape[-1] % hop_length))


def _timed(function: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """A function's result and its wall time, with the device's work done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - started


def _weights_hash(model: nn.Module) -> str:
    digest = blake2b(digest_size=8)
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weight.detach().float().cpu().numpy()).tobytes())
    return digest.hexdigest()
