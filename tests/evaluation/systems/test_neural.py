import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tests.metrics.conftest import TINY_WAV2VEC2

from dmcodec.codec.model import Codec
from dmcodec.evaluation.systems.opening import open_system
from dmcodec.evaluation.systems.parsing import parse_system, parse_systems
from dmcodec.evaluation.systems.system import System
from dmcodec.packages import MissingPackage


def open_text(text: str) -> System:
    return open_system(parse_system(text))


def test_our_codec_gives_what_encode_and_decode_give(
    codec_folder: Path, speech: np.ndarray
) -> None:
    codec = Codec.from_pretrained(codec_folder)
    clip = speech[:8_000]
    encoded = codec.encode(clip)
    expected = codec.decode(encoded, num_codebooks=2)[0].numpy()

    system = open_text(f"x=dmcodec:{codec_folder}@1:2")
    result = system.reconstruct(clip, 16_000, "clip")

    np.testing.assert_array_equal(result.waveform, expected)
    np.testing.assert_array_equal(result.codes, encoded.codes[0, :2].numpy())
    assert result.num_bits == 25 * 2 * 6
    assert system.facts.nominal_kbps == pytest.approx(50 * 2 * 6 / 1000)
    assert system.facts.num_codebooks == 2


def test_a_range_may_leave_the_first_books_out(codec_folder: Path, speech: np.ndarray) -> None:
    codec = Codec.from_pretrained(codec_folder)
    encoded = codec.encode(speech[:8_000]).select_codebooks(1, 4)

    system = open_text(f"x=dmcodec:{codec_folder}@2:4")
    result = system.reconstruct(speech[:8_000], 16_000, "clip")

    assert (system.facts.first_codebook, system.facts.num_codebooks) == (2, 3)
    np.testing.assert_array_equal(result.waveform, codec.decode(encoded)[0].numpy())


def test_code_vectors_are_the_sum_of_the_chosen_books(
    codec_folder: Path, speech: np.ndarray
) -> None:
    codec = Codec.from_pretrained(codec_folder)
    clip = speech[:8_000]
    codes = codec.encode(clip).codes[0]
    books = codec.quantizer.codebooks

    vectors = open_text(f"x=dmcodec:{codec_folder}@2:3").code_vectors(clip, 16_000)  # type: ignore[attr-defined]

    expected = books[1][codes[1]] + books[2][codes[2]]
    np.testing.assert_allclose(vectors, expected.numpy(), atol=1e-6)


def test_identity_changes_with_weights_and_books(codec_folder: Path, tmp_path: Path) -> None:
    codec = Codec.from_pretrained(codec_folder)
    with torch.no_grad():
        next(codec.decoder.parameters()).add_(0.1)
    codec.save_pretrained(tmp_path / "tiny")

    texts = [f"x=dmcodec:{codec_folder}", f"x=dmcodec:{codec_folder}@1"]
    texts.append(f"x=dmcodec:{tmp_path / 'tiny'}")

    assert len({open_text(text).facts.identity for text in texts}) == 3


def test_search_width_is_used_and_told_apart(codec_folder: Path, speech: np.ndarray) -> None:
    codec = Codec.from_pretrained(codec_folder)
    (spec,) = parse_systems([f"x=dmcodec:{codec_folder}@1:3"], {}, {}, 6)

    system = open_system(spec)
    result = system.reconstruct(speech[:8_000], 16_000, "clip")

    expected = codec.encode(speech[:8_000], num_codebooks=3, search_width=6)
    np.testing.assert_array_equal(result.codes, expected.item(0).numpy())
    assert system.facts.description.endswith("books 1 to 3, search width 6")
    assert system.facts.identity != open_text(f"x=dmcodec:{codec_folder}@1:3").facts.identity


def test_too_many_books_are_refused(codec_folder: Path) -> None:
    with pytest.raises(ValueError, match="the codec has 4"):
        open_text(f"x=dmcodec:{codec_folder}@1:8")


def test_published_checkpoint_is_read_from_its_two_files_and_has_books(
    codec_folder: Path, speech: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading official files is tested in the codec's room."""
    codec = Codec.from_pretrained(codec_folder)
    files = {(Path("c.json"), Path("w.pt")): codec}
    monkeypatch.setattr("dmcodec.codec.published.load_published", lambda *paths: files[paths])

    result = open_text("x=published:c.json,w.pt@1:3").reconstruct(speech[:8_000], 16_000, "clip")

    np.testing.assert_array_equal(result.codes, codec.encode(speech[:8_000]).codes[0, :3])


def test_published_checkpoints_need_two_files() -> None:
    with pytest.raises(ValueError, match=r"published:CONFIG.json,CHECKPOINT.pt"):
        open_text("x=published:only.json")


def make_encodec(transformers: Any) -> Any:
    config = transformers.EncodecConfig(
        target_bandwidths=[1.5, 3.0],
        num_filters=2,
        hidden_size=8,
        codebook_dim=8,
        codebook_size=64,
        num_lstm_layers=1,
        upsampling_ratios=[8, 5, 4, 2],
    )
    return transformers.EncodecModel(config)


def make_dac(transformers: Any) -> Any:
    config = transformers.DacConfig(
        encoder_hidden_size=4,
        decoder_hidden_size=32,
        hidden_size=64,
        downsampling_ratios=[2, 4, 5, 8],
        upsampling_ratios=[8, 5, 4, 2],
        n_codebooks=3,
        codebook_size=16,
        codebook_dim=4,
    )
    return transformers.DacModel(config)


def make_mimi(transformers: Any) -> Any:
    config = transformers.MimiConfig(
        hidden_size=32,
        num_filters=2,
        codebook_size=32,
        codebook_dim=8,
        vector_quantization_hidden_dimension=8,
        num_quantizers=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=32,
        upsample_groups=32,
    )
    return transformers.MimiModel(config)


def make_xcodec(transformers: Any) -> Any:
    speech_model = transformers.HubertConfig(
        **TINY_WAV2VEC2,
    )
    acoustic = transformers.DacConfig(
        encoder_hidden_size=4,
        decoder_hidden_size=32,
        hidden_size=16,
        downsampling_ratios=[8, 5, 4, 2],
        upsampling_ratios=[8, 5, 4, 2],
        sampling_rate=16_000,
    )
    config = transformers.XcodecConfig(
        acoustic_model_config=acoustic,
        semantic_model_config=speech_model,
        codebook_size=64,
        target_bandwidths=[0.3, 0.9],
    )
    return transformers.XcodecModel(config)


@pytest.mark.parametrize(
    ("make", "books", "frame_rate", "bits"),
    [
        (make_encodec, 3, 75.0, 6),
        (make_dac, 2, 50.0, 4),
        (make_mimi, 3, 12.5, 5),
        (make_xcodec, 2, 50.0, 6),
    ],
)
def test_codecs_of_transformers_run_at_their_own_rate(
    make: Any, books: int, frame_rate: float, bits: int, tmp_path: Path, speech: np.ndarray
) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install 'dmcodec[eval]'")
    make(transformers).eval().save_pretrained(tmp_path)
    clip = speech[:16_000]

    system = open_text(f"x=transformers:{tmp_path}@1:{books}")
    result = system.reconstruct(clip, 16_000, "clip")

    facts, rate = system.facts, result.sample_rate
    assert (facts.num_codebooks, facts.frame_rate) == (books, frame_rate)
    assert facts.nominal_kbps == pytest.approx(frame_rate * books * bits / 1000)
    assert result.codes is not None
    assert len(result.codes) == books
    assert result.codes.shape[1] == pytest.approx(frame_rate, abs=1)  # of one second
    assert result.num_bits == result.codes.size * bits
    assert len(result.waveform) == pytest.approx(rate, rel=0.05)
    # The vectors are what a frame's codes stand for: one vector for each different frame of codes.
    vectors = system.code_vectors(clip, 16_000)  # type: ignore[attr-defined]
    assert len(vectors) == result.codes.shape[1]
    assert len(np.unique(vectors, axis=0)) == len(np.unique(result.codes, axis=1).T)


def test_encodec_with_all_books_is_the_model_called_directly(
    tmp_path: Path, speech: np.ndarray
) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install 'dmcodec[eval]'")
    model = make_encodec(transformers).eval()
    model.save_pretrained(tmp_path)
    from dmcodec.audio import resample

    signal = torch.from_numpy(resample(speech[:16_000], 16_000, 24_000))[None, None]
    with torch.inference_mode():
        expected = model(signal, bandwidth=3.0)

    result = open_text(f"x=transformers:{tmp_path}").reconstruct(speech[:16_000], 16_000, "clip")

    np.testing.assert_array_equal(result.codes, expected.audio_codes[0, 0].numpy())
    torch.testing.assert_close(torch.from_numpy(result.waveform), expected.audio_values[0, 0])


def save_with_features(transformers: Any, family: str, folder: Path) -> None:
    """A small X-Codec-2 or NeuCodec, which differ in names and in the rate that comes out."""
    if not hasattr(transformers, f"{family}Model"):
        pytest.skip(f"this version of transformers has no {family}")
    speech_model = transformers.Wav2Vec2BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_depthwise_kernel_size=3,
    )
    config = getattr(transformers, f"{family}Config")(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        encoder_hidden_size=4,
        semantic_model_config=speech_model,
        quantization_dim=48,  # of both encoders together
    )
    getattr(transformers, f"{family}Model")(config).eval().save_pretrained(folder)


@pytest.mark.parametrize(("family", "rate"), [("Xcodec2", 16_000), ("NeuCodec", 24_000)])
def test_codecs_with_an_extractor_run_with_its_features(
    family: str, rate: int, tmp_path: Path, speech: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real extractors need torchaudio, so features of the right shape stand in."""
    transformers = pytest.importorskip("transformers", reason="pip install 'dmcodec[eval]'")
    save_with_features(transformers, family, tmp_path)

    def extract(audio: np.ndarray, sampling_rate: int, return_tensors: str) -> Any:
        features = torch.zeros(1, len(audio) // 320, 160)
        inputs = {"input_values": torch.from_numpy(audio)[None, None], "input_features": features}
        return transformers.BatchFeature(inputs)

    stub = type("Extractor", (), {"from_pretrained": staticmethod(lambda name: extract)})
    monkeypatch.setattr(transformers, "AutoFeatureExtractor", stub)
    monkeypatch.setitem(sys.modules, "torchaudio", ModuleType("torchaudio"))

    system = open_text(f"x=transformers:{tmp_path}")
    result = system.reconstruct(speech[:16_000], 16_000, "clip")

    assert system.facts.frame_rate == 50.0
    assert result.codes is not None
    assert result.codes.shape == (1, 50)
    assert result.num_bits == 50 * 16  # 4 ** 8 entries
    assert (result.sample_rate, len(result.waveform)) == (rate, rate)


def test_extractor_without_torchaudio_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install 'dmcodec[eval]'")
    save_with_features(transformers, "Xcodec2", tmp_path)
    monkeypatch.setitem(sys.modules, "torchaudio", None)

    with pytest.raises(MissingPackage, match="extractor of xcodec2 needs the package torchaudio"):
        open_text(f"x=transformers:{tmp_path}")


def test_other_models_of_transformers_are_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install 'dmcodec[eval]'")
    config = transformers.BertConfig(
        vocab_size=10, hidden_size=4, num_hidden_layers=1, num_attention_heads=1
    )
    transformers.BertModel(config).save_pretrained(tmp_path)

    with pytest.raises(ValueError, match="is a 'bert'; codecs that are known here: encodec"):
        open_text(f"x=transformers:{tmp_path}")
