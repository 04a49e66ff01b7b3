"""Writes a Whisper of transformers as CTranslate2 lays it out, from the format's description."""

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

_CODES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def save_as_ctranslate2(whisper, tokens: Mapping[str, int], folder: Path) -> Path:
    """A folder with model.bin in float16, config.json and a tokenizer.json of single characters."""
    folder.mkdir(exist_ok=True)
    variables = dict(sorted(_variables(whisper)))
    aliases = [("decoder/projection/weight", "decoder/embeddings/weight")]
    (folder / "model.bin").write_bytes(pack(variables, aliases))
    config = {"alignment_heads": [[0, 1]], "suppress_ids": [3, 4], "suppress_ids_begin": [5]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocabulary.txt").write_text("\n".join(tokens))
    added = [
        {"content": token, "id": number, "special": True}
        for token, number in tokens.items()
        if token.startswith("<|")
    ]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    return folder


def pack(
    variables: Mapping[str, np.ndarray],
    aliases: Iterable[tuple[str, str]] = (),
    *,
    version: int = 6,
    kind: str = "WhisperSpec",
) -> bytes:
    parts = [struct.pack("<I", version), _name(kind), struct.pack("<II", 3, len(variables))]
    for name, values in variables.items():
        parts += [_name(name), struct.pack("<B", values.ndim)]
        parts += [struct.pack("<I", size) for size in values.shape]
        parts += [struct.pack("<BI", _CODES[str(values.dtype)], values.nbytes), values.tobytes()]
    aliases = list(aliases)
    parts.append(struct.pack("<I", len(aliases)))
    parts += [_name(alias) + _name(name) for alias, name in aliases]
    return b"".join(parts)


def _name(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def _variables(whisper) -> Iterable[tuple[str, np.ndarray]]:
    state = {name.removeprefix("model."): value for name, value in whisper.state_dict().items()}

    def half(*names: str) -> np.ndarray:
        # Keys have no bias in transformers; CTranslate2 stores zeros.
        like = state[names[0]]
        return torch.cat([state.get(name, torch.zeros_like(like)) for name in names]).half().numpy()

    for side in ("encoder", "decoder"):
        config = whisper.config
        layers = config.encoder_layers if side == "encoder" else config.decoder_layers
        heads = (
            config.encoder_attention_heads if side == "encoder" else config.decoder_attention_heads
        )
        yield f"{side}/num_heads", np.array(heads, dtype=np.int16)
        yield f"{side}/position_encodings/encodings", half(f"{side}.embed_positions.weight")
        yield from _norm(half, f"{side}/layer_norm", f"{side}.layer_norm")
        for layer in range(layers):
            out, name = f"{side}/layer_{layer}", f"{side}.layers.{layer}"
            for kind in ("weight", "bias"):
                joined = [f"{name}.self_attn.{part}_proj.{kind}" for part in "qkv"]
                yield f"{out}/self_attention/linear_0/{kind}", half(*joined)
                yield (
                    f"{out}/self_attention/linear_1/{kind}",
                    half(f"{name}.self_attn.out_proj.{kind}"),
                )
                for number in (0, 1):
                    yield f"{out}/ffn/linear_{number}/{kind}", half(f"{name}.fc{number + 1}.{kind}")
                if side == "decoder":
                    crossed = f"{name}.encoder_attn"
                    yield f"{out}/attention/linear_0/{kind}", half(f"{crossed}.q_proj.{kind}")
                    # The bias of k is missing: v gives the size.
                    v = state[f"{crossed}.v_proj.{kind}"]
                    k = state.get(f"{crossed}.k_proj.{kind}", torch.zeros_like(v))
                    yield f"{out}/attention/linear_1/{kind}", torch.cat([k, v]).half().numpy()
                    yield f"{out}/attention/linear_2/{kind}", half(f"{crossed}.out_proj.{kind}")
            attention = f"{out}/self_attention"
            yield from _norm(half, f"{attention}/layer_norm", f"{name}.self_attn_layer_norm")
            yield from _norm(half, f"{out}/ffn/layer_norm", f"{name}.final_layer_norm")
            if side == "decoder":
                yield from _norm(
                    half, f"{out}/attention/layer_norm", f"{name}.encoder_attn_layer_norm"
                )
    for number in (1, 2):
        for kind in ("weight", "bias"):
            yield f"encoder/conv{number}/{kind}", half(f"encoder.conv{number}.{kind}")
    yield "decoder/embeddings/weight", half("decoder.embed_tokens.weight")


def _norm(half, out: str, name: str) -> Iterable[tuple[str, np.ndarray]]:
    yield f"{out}/gamma", half(f"{name}.weight")
    yield f"{out}/beta", half(f"{name}.bias")
