import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from pydantic import ValidationError

from dmcodec.audio import AudioError, read_audio, remove_dc, write_audio
from dmcodec.corpus.manifest import Utterance
from dmcodec.data.dataset import DataConfig, SegmentDataset

SEGMENT_SAMPLES = 3_200


def make_waveform(num_samples: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=num_samples + 2)
    smooth = np.convolve(noise, [0.25, 0.5, 0.25], mode="valid")
    return (0.2 * smooth / np.abs(smooth).max()).astype(np.float32)


def make_config(**changes: Any) -> DataConfig:
    settings: dict[str, Any] = {
        "train_manifests": ("unused.jsonl",),
        "segment_samples": SEGMENT_SAMPLES,
        "gain_db": (0.0, 0.0),
        "use_polarity_flip": False,
    }
    return DataConfig(**settings | changes)


@pytest.fixture(scope="module")
def utterances(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    """Two corpora, 'long read' of 3 x 2 s and 'short read' of 3 x 0.5 s."""
    folder = tmp_path_factory.mktemp("speech")
    made = []
    for number in range(6):
        corpus, num_samples = ("long read", 32_000) if number < 3 else ("short read", 8_000)
        path = folder / f"u{number}.flac"
        write_audio(path, make_waveform(num_samples + number, seed=number))
        made.append(
            Utterance(id=f"u{number}", audio=path, num_samples=num_samples + number, corpus=corpus)
        )
    return made


def make_one(
    tmp_path: Path, waveform: np.ndarray, config: DataConfig, rate: int = 16_000
) -> SegmentDataset:
    """A dataset of one float file."""
    soundfile.write(tmp_path / "x.wav", waveform, rate, subtype="FLOAT")
    return SegmentDataset([Utterance(id="x", audio=tmp_path / "x.wav")], config, seed=0)


def test_segment_is_the_slice_it_says(utterances: list[Utterance]) -> None:
    dataset = SegmentDataset(utterances, make_config(), seed=0)

    for n in range(30):
        segment = dataset[n]
        whole = read_audio(dataset.utterances[segment.utterance_index].audio)
        start = segment.start_samples
        expected = remove_dc(whole[start : start + SEGMENT_SAMPLES])
        assert segment.num_samples == SEGMENT_SAMPLES
        torch.testing.assert_close(segment.waveform, torch.from_numpy(expected)[None])


def test_segment_is_a_function_of_seed_and_number(utterances: list[Utterance]) -> None:
    config = make_config(gain_db=(-12.0, 6.0), use_polarity_flip=True)
    dataset = SegmentDataset(utterances, config, seed=5)
    again = SegmentDataset(utterances, config, seed=5)
    other = SegmentDataset(utterances, config, seed=6)

    forwards = [dataset[n].waveform for n in range(10)]
    backwards = [again[n].waveform for n in reversed(range(10))][::-1]

    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert not any(torch.equal(forwards[n], other[n].waveform) for n in range(10))
    assert len({waveform.std().item() for waveform in forwards}) == 10


def test_segments_start_on_the_frame_grid_and_reach_both_ends(
    utterances: list[Utterance],
) -> None:
    dataset = SegmentDataset(utterances[:1], make_config(use_preload=True), seed=0)

    starts = {dataset[n].start_samples for n in range(1_500)}

    assert starts == set(range(0, 32_000 - SEGMENT_SAMPLES + 1, 320))


@pytest.mark.parametrize("num_samples", [1, 319, 3_199])
def test_short_utterance_is_padded_at_its_end(tmp_path: Path, num_samples: int) -> None:
    waveform = make_waveform(num_samples, seed=1)
    segment = make_one(tmp_path, waveform, make_config())[0]

    assert segment.waveform.shape == (1, SEGMENT_SAMPLES)
    assert (segment.num_samples, segment.start_samples) == (num_samples, 0)
    expected = torch.from_numpy(remove_dc(waveform))
    torch.testing.assert_close(segment.waveform[0, :num_samples], expected)
    assert not segment.waveform[0, num_samples:].any()


def test_dc_is_removed(tmp_path: Path) -> None:
    dataset = make_one(tmp_path, make_waveform(16_000, seed=1) + 0.3, make_config())

    for n in range(5):
        assert abs(dataset[n].waveform.mean().item()) < 1e-6


def test_silent_file_stays_silent(tmp_path: Path) -> None:
    dataset = make_one(tmp_path, np.full(16_000, 0.25), make_config(gain_db=(6.0, 6.0)))

    assert not dataset[0].waveform.any()


def test_gain_lies_in_its_range_and_spreads_over_it(utterances: list[Utterance]) -> None:
    plain = SegmentDataset(utterances, make_config(use_preload=True), seed=0)
    louder = SegmentDataset(utterances, make_config(use_preload=True, gain_db=(-12, 6)), seed=0)

    gains_db = np.array(
        [20 * (louder[n].waveform.std() / plain[n].waveform.std()).log10() for n in range(300)]
    )

    assert -12.001 <= gains_db.min() < -11
    assert 5 < gains_db.max() <= 6.001
    assert abs(gains_db.mean() + 3) < 1  # uniform: mean -3, standard error 0.3


def test_gain_never_clips(tmp_path: Path) -> None:
    waveform = 4.5 * make_waveform(16_000, seed=1)  # peak 0.9
    dataset = make_one(tmp_path, waveform, make_config(gain_db=(20.0, 20.0)))

    for n in range(10):
        segment = dataset[n]
        real = remove_dc(waveform[segment.start_samples :][:SEGMENT_SAMPLES])
        # All of the segment is scaled alike, and up to full scale but no further.
        assert 0.9999 < segment.waveform.abs().max() < 1.0
        scale = segment.waveform.abs().max().item() / np.abs(real).max()
        torch.testing.assert_close(segment.waveform[0], torch.from_numpy(real * scale))


def test_polarity_is_flipped_for_half_of_the_segments(utterances: list[Utterance]) -> None:
    plain = SegmentDataset(utterances, make_config(use_preload=True), seed=0)
    flipped = SegmentDataset(
        utterances, make_config(use_preload=True, use_polarity_flip=True), seed=0
    )

    signs = []
    for n in range(200):
        if torch.equal(flipped[n].waveform, -plain[n].waveform):
            signs.append(-1)
        else:
            assert torch.equal(flipped[n].waveform, plain[n].waveform)
            signs.append(1)

    assert abs(sum(signs)) < 50  # 3.5 standard deviations


def test_without_weights_utterances_are_drawn_by_duration(utterances: list[Utterance]) -> None:
    dataset = SegmentDataset(utterances, make_config(use_preload=True), seed=0)

    counts = Counter(dataset[n].utterance_index for n in range(3_000))

    for index in range(6):
        share = 32_000 / 120_000 if index < 3 else 8_000 / 120_000
        assert abs(counts[index] / 3_000 - share) < 0.03  # 3.7 standard deviations or more


def test_corpus_weights_are_respected(utterances: list[Utterance]) -> None:
    weights = {"long": 1.0, "short read": 3.0}
    dataset = SegmentDataset(
        utterances, make_config(use_preload=True, corpus_weights=weights), seed=0
    )

    counts = Counter(dataset.utterances[dataset[n].utterance_index].corpus for n in range(3_000))

    assert abs(counts["short read"] / 3_000 - 0.75) < 0.03


def test_weight_zero_leaves_a_corpus_out_and_the_longest_prefix_counts(
    utterances: list[Utterance],
) -> None:
    weights = {"": 1.0, "long": 0.0}
    dataset = SegmentDataset(
        utterances, make_config(use_preload=True, corpus_weights=weights), seed=0
    )

    assert {dataset[n].utterance_index for n in range(300)} == {3, 4, 5}


def test_stereo_44100_file_trains_like_its_mono_16000_copy(tmp_path: Path) -> None:
    left, right = make_waveform(100_000, 1), make_waveform(100_000, 2)
    stereo = np.stack([left, right], axis=1)
    config = make_config(gain_db=(-12.0, 6.0), use_polarity_flip=True)
    dataset = make_one(tmp_path, stereo, config, rate=44_100)
    write_audio(tmp_path / "copy.wav", read_audio(tmp_path / "x.wav"))
    copy = SegmentDataset([Utterance(id="x", audio=tmp_path / "copy.wav")], config, seed=0)

    for n in range(20):
        segment, expected = dataset[n], copy[n]
        assert segment[1:] == expected[1:]
        # The copy is rounded to 16 bits, then raised by up to 6 dB.
        torch.testing.assert_close(segment.waveform, expected.waveform, rtol=0, atol=2**-14)


def test_preloading_changes_nothing(utterances: list[Utterance]) -> None:
    config = make_config(gain_db=(-12.0, 6.0), use_polarity_flip=True)
    from_disk = SegmentDataset(utterances, config, seed=0)
    preloaded = SegmentDataset(utterances, config.model_copy(update={"use_preload": True}), seed=0)

    for n in range(30):
        assert torch.equal(from_disk[n].waveform, preloaded[n].waveform)
        assert from_disk[n][1:] == preloaded[n][1:]


def test_preloading_resampled_files_rounds_to_16_bits(tmp_path: Path) -> None:
    waveform = make_waveform(44_100, seed=1)
    from_disk = make_one(tmp_path, waveform, make_config(), rate=44_100)
    preloaded = make_one(tmp_path, waveform, make_config(use_preload=True), rate=44_100)

    for n in range(10):
        torch.testing.assert_close(
            from_disk[n].waveform, preloaded[n].waveform, rtol=0, atol=2**-15
        )


def test_short_utterances_are_left_out_and_counted(
    utterances: list[Utterance], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        dataset = SegmentDataset(utterances, make_config(min_samples=16_000), seed=0)

    assert [each.id for each in dataset.utterances] == ["u0", "u1", "u2"]
    assert dataset.num_samples.tolist() == [32_000, 32_001, 32_002]
    assert "3 utterances, 0.1 min; 3 shorter than 1.00 s left out" in caplog.text
    with pytest.raises(ValueError, match="none of 6 utterances"):
        SegmentDataset(utterances, make_config(min_samples=99_999), seed=0)


def test_weights_that_do_not_fit_the_corpora_are_refused(utterances: list[Utterance]) -> None:
    with pytest.raises(ValueError, match=r"corpus 'short read' \(utterance 'u3'\)"):
        SegmentDataset(utterances, make_config(corpus_weights={"long": 1.0}), seed=0)
    with pytest.raises(ValueError, match=r"names \['other'\], but no utterance"):
        SegmentDataset(utterances, make_config(corpus_weights={"": 1.0, "other": 1.0}), seed=0)


def test_missing_or_damaged_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.flac"):
        SegmentDataset([Utterance(id="x", audio=tmp_path / "gone.flac")], make_config(), seed=0)
    (tmp_path / "bad.flac").write_bytes(b"no sound")
    with pytest.raises(AudioError, match=r"bad\.flac"):
        SegmentDataset([Utterance(id="x", audio=tmp_path / "bad.flac")], make_config(), seed=0)


def test_damage_inside_a_file_is_named_when_met(tmp_path: Path) -> None:
    write_audio(tmp_path / "x.flac", make_waveform(16_000, seed=1))
    content = (tmp_path / "x.flac").read_bytes()
    (tmp_path / "x.flac").write_bytes(content[: len(content) // 2])
    dataset = SegmentDataset(
        [Utterance(id="x", audio=tmp_path / "x.flac")],
        make_config(segment_samples=16_000),
        seed=0,
    )

    with pytest.raises(AudioError, match=r"x\.flac: damaged"):
        dataset[0]


def test_file_that_contradicts_its_manifest_is_refused(utterances: list[Utterance]) -> None:
    rounded = utterances[0].model_copy(update={"num_samples": 32_000 + 1_500})
    wrong = utterances[0].model_copy(update={"num_samples": 32_000 + 1_700})

    assert SegmentDataset([rounded], make_config(), seed=0).num_samples.tolist() == [32_000]
    with pytest.raises(ValueError, match=r"lasts 2\.000 s, its manifest says 2\.106 s"):
        SegmentDataset([wrong], make_config(), seed=0)


def test_numbers_below_zero_are_refused(utterances: list[Utterance]) -> None:
    with pytest.raises(IndexError, match="numbered from 0, got -1"):
        SegmentDataset(utterances, make_config(), seed=0)[-1]
    with pytest.raises(ValueError, match="seed must not be negative"):
        SegmentDataset(utterances, make_config(), seed=-1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segment_samples": 16_001}, "not a whole number of frames"),
        ({"gain_db": (6.0, -6.0)}, "lowest, highest"),
        ({"gain_db": (float("nan"), 0.0)}, "lowest, highest"),
        ({"gain_db": (float("-inf"), 0.0)}, "finite"),
        ({"corpus_weights": {"a": -1.0}}, "not negative"),
        ({"corpus_weights": {"a": 0.0}}, "not all 0"),
        ({"train_manifests": ()}, "at least 1"),
        ({"segment_sample": 16_000}, "Extra inputs"),
    ],
)
def test_impossible_configuration_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_config(**changes)
