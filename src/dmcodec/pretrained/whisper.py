"""Whisper models of Hugging Face and CTranslate2 folders alike; their encoder on short sound.

The encoder here is transformers' module by module (a test holds them equal); it also takes less
than 30 s, with position vectors cut to the length.

Reference: Radford et al. 2022, arXiv:2212.04356.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmcodec.config import parse_json
from dmcodec.pretrained.ctranslate2 import (
    Array,
    CTranslate2Error,
    CTranslate2Model,
    is_ctranslate2,
    read_ctranslate2,
)
from dmcodec.pretrained.models import import_transformers, load_weights, read_config
from dmcodec.spectral import Mel, hann_window, mel_filterbank

SAMPLE_RATE = 16_000
FRAME_SAMPLES = 320
"""Samples between two frames of the encoder."""

_N_FFT, _MEL_HOP = 400, 160
# The last frame's convolutions read one mel frame more, of the silence that follows.
_CONTEXT = 1
_LANGUAGES_BEGIN = "<|startoftranscript|>"
_LANGUAGES_END = "<|translate|>"


def load_whisper(folder: Path, device: str = "cpu") -> Any:
    """A frozen float32 `WhisperForConditionalGeneration` of a Hugging Face or CTranslate2 folder.

    Raises CTranslate2Error for damaged files, ValueError for those of another kind of model.
    """
    transformers = import_transformers()
    if not is_ctranslate2(folder):
        return load_weights(transformers.WhisperForConditionalGeneration, folder, device)
    return _from_ctranslate2(folder).to(device)


def load_processor(folder: Path) -> Any:
    """The processor of any model of sound: feature extractor and tokenizer."""
    transformers = import_transformers()
    if not is_ctranslate2(folder):
        return transformers.AutoProcessor.from_pretrained(folder)
    num_mels = _get(read_ctranslate2(folder), "encoder/conv1/weight", 3).shape[1]
    return transformers.WhisperProcessor(
        transformers.WhisperFeatureExtractor(feature_size=num_mels),
        transformers.WhisperTokenizer(tokenizer_file=str(folder / "tokenizer.json")),
    )


def is_whisper(folder: Path) -> bool:
    """Whether a folder holds a Whisper model of either layout; weights are not read."""
    return is_ctranslate2(folder) or read_config(folder).model_type == "whisper"


def model_width(folder: Path) -> int:
    """H of any model's hidden states, without its weights."""
    if is_ctranslate2(folder):
        return int(_get(read_ctranslate2(folder), "encoder/layer_norm/gamma", 1).shape[0])
    return int(read_config(folder).hidden_size)


def log_mel(waveforms: Tensor, num_frames: int, num_mels: int) -> Tensor:
    """Whisper's log-mel frames [B, M, 2 * num_frames + 1] of waveforms [B, T], with gradient.

    Mel frame m has its centre at sample 160 m; after the end there is digital silence, before the
    start the reflection of it. Each waveform is scaled by its own maximum: a batch changes nothing.
    The one frame more is for the convolutions.
    """
    count = 2 * num_frames + _CONTEXT
    missing = count * _MEL_HOP + _N_FFT - waveforms.shape[1]
    # Up to half a transform before the start is reflected, and one more frame is cut at the end.
    signal = F.pad(waveforms.float(), (0, max(0, missing)))
    signal = F.pad(signal[:, None], (_N_FFT // 2, 0), mode="reflect")[:, 0]
    window = hann_window(_N_FFT, signal.device, signal.dtype)
    spectrum = torch.stft(
        signal, _N_FFT, _MEL_HOP, window=window, center=False, return_complex=True
    )[..., :count]  # [B, F, 2 L + 1]
    filters = _mel_filters(num_mels, signal.device)
    power = spectrum.real.square() + spectrum.imag.square()
    levels = (filters @ power).clamp(min=1e-10).log10()
    loudest = levels.amax(dim=(1, 2), keepdim=True)
    return (torch.maximum(levels, loudest - 8.0) + 4.0) / 4.0


def max_frames(encoder: Any) -> int:
    """How many frames an encoder takes at once: 1,500, for the 30 s that it was trained on."""
    return int(encoder.embed_positions.weight.shape[0])


def encoder_states(encoder: Any, mels: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """All hidden states [B, L, H] of an encoder for mel frames [B, M, 2 L + 1] of `log_mel`.

    State 0 is the embedding, the last one has the final normalization, as in transformers. With
    all frames that the model takes (1,500, 30 s) they are what it was trained to give; with fewer,
    positions end earlier and attention sees only what is there.

    Args:
        encoder: of a transformers Whisper model.
        mels: of `log_mel`.
        mask: [B, L], False for frames of padding; None: all count.
    """
    num_frames, limit = (mels.shape[2] - _CONTEXT) // 2, max_frames(encoder)
    if not 1 <= num_frames <= limit:
        raise ValueError(f"Whisper takes 1 to {limit} frames at once, got {num_frames}")
    if num_frames == limit:  # the model's own window ends there
        mels = mels[..., :-_CONTEXT]
    hidden = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mels))))  # [B, H, L or L + 1]
    hidden = hidden[..., :num_frames].transpose(1, 2)
    hidden = hidden + encoder.embed_positions.weight[:num_frames]
    states = [hidden]
    attended = None if mask is None else mask[:, None, None, :]
    for layer in encoder.layers:
        hidden = hidden + _attention(layer.self_attn, layer.self_attn_layer_norm(hidden), attended)
        hidden = hidden + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(hidden))))
        states.append(hidden)
    states[-1] = encoder.layer_norm(hidden)
    return states


def _attention(module: Any, inputs: Tensor, mask: Tensor | None) -> Tensor:
    def heads(projection: nn.Module) -> Tensor:
        return projection(inputs).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(
        heads(module.q_proj), heads(module.k_proj), heads(module.v_proj), attn_mask=mask
    )
    return module.out_proj(mixed.transpose(1, 2).flatten(2))


@lru_cache(maxsize=8)
def _mel_filters(num_mels: int, device: torch.device) -> Tensor:
    """The filters on a device; shared, so nobody may write into them."""
    with torch.inference_mode(False):  # what is made there could not be trained through
        mel = Mel(sample_rate=SAMPLE_RATE, n_fft=_N_FFT, num_mels=num_mels)
        return mel_filterbank(mel).to(device)


def _from_ctranslate2(folder: Path) -> Any:
    transformers = import_transformers()
    model = read_ctranslate2(folder)
    tokens = _read_tokens(folder)
    width, num_mels, _ = _get(model, "encoder/conv1/weight", 3).shape
    vocabulary = _get(model, "decoder/embeddings/weight", 2).shape[0]
    end = _token(folder, tokens, "<|endoftext|>")
    config = transformers.WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=num_mels,
        d_model=width,
        encoder_layers=_count_layers(model, "encoder"),
        decoder_layers=_count_layers(model, "decoder"),
        encoder_attention_heads=int(_get(model, "encoder/num_heads", 0)),
        decoder_attention_heads=int(_get(model, "decoder/num_heads", 0)),
        encoder_ffn_dim=_get(model, "encoder/layer_0/ffn/linear_0/weight", 2).shape[0],
        decoder_ffn_dim=_get(model, "decoder/layer_0/ffn/linear_0/weight", 2).shape[0],
        max_source_positions=_get(model, "encoder/position_encodings/encodings", 2).shape[0],
        max_target_positions=_get(model, "decoder/position_encodings/encodings", 2).shape[0],
        decoder_start_token_id=_token(folder, tokens, _LANGUAGES_BEGIN),
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    for side in ("encoder", "decoder"):
        heads = int(_get(model, f"{side}/num_heads", 0))
        if heads < 1 or width % heads:
            raise CTranslate2Error(f"{folder}: {heads} heads do not divide a width of {width}")
    with torch.device("meta"):
        whisper = transformers.WhisperForConditionalGeneration(config)
    weights = _weights(folder, model, config)
    try:
        whisper.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        raise CTranslate2Error(f"{folder}: its tensors make no Whisper model: {error}") from error
    whisper.tie_weights()
    whisper.generation_config = _generation(folder, model, config, tokens)
    return whisper.eval().requires_grad_(False)


def _generation(
    folder: Path, model: CTranslate2Model, config: Any, tokens: Mapping[str, int]
) -> Any:
    """What transformers needs beside the weights to write and to time words."""
    first, last = (_token(folder, tokens, each) for each in (_LANGUAGES_BEGIN, _LANGUAGES_END))
    # English models have no token that names a language first, though their vocabulary has them.
    is_multilingual = config.vocab_size >= 51_865
    languages = {name: index for name, index in tokens.items() if first < index < last}
    return import_transformers().GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        no_timestamps_token_id=_token(folder, tokens, "<|notimestamps|>"),
        prev_sot_token_id=_token(folder, tokens, "<|startofprev|>"),
        suppress_tokens=model.config.get("suppress_ids"),
        begin_suppress_tokens=model.config.get("suppress_ids_begin"),
        alignment_heads=model.config.get("alignment_heads"),
        max_length=config.max_target_positions,
        max_initial_timestamp_index=50,
        return_timestamps=False,
        is_multilingual=is_multilingual,
        **(
            {
                "lang_to_id": languages,
                "task_to_id": {
                    task: _token(folder, tokens, f"<|{task}|>")
                    for task in ("transcribe", "translate")
                },
            }
            if is_multilingual
            else {}
        ),
    )


def _weights(folder: Path, model: CTranslate2Model, config: Any) -> dict[str, Tensor]:
    """The state of `WhisperForConditionalGeneration` from CTranslate2's variables."""
    weights: dict[str, Tensor] = {}

    def put(name: str, variable: str, part: int = 0, parts: int = 1) -> None:
        values = _tensor(folder, model, variable)
        if values.shape[0] % parts:
            raise CTranslate2Error(
                f"{folder}: {variable} {list(values.shape)} has no {parts} parts"
            )
        weights[name] = values.chunk(parts)[part].clone()

    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        for index in range(layers):
            ours, theirs = f"model.{side}.layers.{index}", f"{side}/layer_{index}"
            _put_attention(put, f"{ours}.self_attn", f"{theirs}/self_attention", is_crossed=False)
            if side == "decoder":
                _put_attention(put, f"{ours}.encoder_attn", f"{theirs}/attention", is_crossed=True)
            _put_norm(put, f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm")
            for number in (0, 1):
                for kind in ("weight", "bias"):
                    put(f"{ours}.fc{number + 1}.{kind}", f"{theirs}/ffn/linear_{number}/{kind}")
        _put_norm(put, f"model.{side}.layer_norm", f"{side}/layer_norm")
        put(f"model.{side}.embed_positions.weight", f"{side}/position_encodings/encodings")
    for number in (1, 2):
        for kind in ("weight", "bias"):
            put(f"model.encoder.conv{number}.{kind}", f"encoder/conv{number}/{kind}")
    put("model.decoder.embed_tokens.weight", "decoder/embeddings/weight")
    put("proj_out.weight", "decoder/projection/weight")
    # transformers' projections to keys have no bias, CTranslate2 stores zeros.
    return {name: value for name, value in weights.items() if not name.endswith("k_proj.bias")}


def _put_norm(put: Any, ours: str, theirs: str) -> None:
    put(f"{ours}.weight", f"{theirs}/gamma")
    put(f"{ours}.bias", f"{theirs}/beta")


def _put_attention(put: Any, ours: str, theirs: str, *, is_crossed: bool) -> None:
    """Projections lie one under the other: q, k, v; or q alone and then k, v."""
    _put_norm(put, f"{ours}_layer_norm", f"{theirs}/layer_norm")
    for kind in ("weight", "bias"):
        if is_crossed:
            put(f"{ours}.q_proj.{kind}", f"{theirs}/linear_0/{kind}")
            put(f"{ours}.k_proj.{kind}", f"{theirs}/linear_1/{kind}", 0, 2)
            put(f"{ours}.v_proj.{kind}", f"{theirs}/linear_1/{kind}", 1, 2)
            put(f"{ours}.out_proj.{kind}", f"{theirs}/linear_2/{kind}")
        else:
            for part, name in enumerate("qkv"):
                put(f"{ours}.{name}_proj.{kind}", f"{theirs}/linear_0/{kind}", part, 3)
            put(f"{ours}.out_proj.{kind}", f"{theirs}/linear_1/{kind}")


def _tensor(folder: Path, model: CTranslate2Model, name: str) -> Tensor:
    values = _get(model, name)
    if values.dtype.kind != "f":
        raise CTranslate2Error(
            f"{folder}: {name} is {values.dtype}: a quantized model teaches nobody; take the "
            "float16 one"
        )
    values = values.astype("float32")
    if not bool(torch.isfinite(tensor := torch.from_numpy(values)).all()):
        raise CTranslate2Error(f"{folder}: damaged: {name} has values that are not finite")
    return tensor


def _get(model: CTranslate2Model, name: str, rank: int | None = None) -> Array:
    values = model.variables.get(name)
    if values is None or (rank is not None and values.ndim != rank):
        found = "none" if values is None else f"shape {list(values.shape)}"
        raise CTranslate2Error(f"model.bin: needs the variable {name}, has {found}")
    return values


def _count_layers(model: CTranslate2Model, side: str) -> int:
    count = 0
    while f"{side}/layer_{count}/self_attention/linear_0/weight" in model.variables:
        count += 1
    return count


def _read_tokens(folder: Path) -> dict[str, int]:
    """The added tokens of `tokenizer.json` by name."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: missing tokenizer.json")
    try:
        table = parse_json(path.read_bytes())
        return {str(each["content"]): int(each["id"]) for each in table["added_tokens"]}
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise CTranslate2Error(f"{path}: damaged: {error}") from error


def _token(folder: Path, tokens: Mapping[str, int], name: str) -> int:
    if name not in tokens:
        raise CTranslate2Error(f"{folder / 'tokenizer.json'}: has no {name}: not Whisper's")
    return tokens[name]
