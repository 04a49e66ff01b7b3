"""A silent original says nothing about a codec: it must not turn a ranking round."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from dmcodec.audio import write_audio
from dmcodec.evaluation.config import EvaluationConfig
from dmcodec.evaluation.run import evaluate
from dmcodec.evaluation.scoring import SILENT_ORIGINAL, score_group
from dmcodec.metrics.intelligibility import estoi
from dmcodec.metrics.measure import Models, Original, ScoringConfig, Unmeasurable
from dmcodec.metrics.opinion import pesq_nb, pesq_wb, visqol
from dmcodec.metrics.registry import GROUPS

HERE = [
    name
    for name, group in GROUPS.items()
    if group.compute is not None and group.why_not(ScoringConfig()) is None
]
MEAN_SOMETHING = {"mel_distance", "stft_distance", "voicing_error"}
SILENCE = np.zeros(32_000, np.float32)


def faint_noise() -> np.ndarray:
    return (0.001 * np.random.default_rng(3).standard_normal(32_000)).astype(np.float32)


@pytest.mark.parametrize("name", HERE)
def test_no_group_scores_anything_that_needs_a_signal(name: str) -> None:
    original = Original(SILENCE, Models(ScoringConfig()))

    for estimate in (SILENCE, faint_noise()):
        scores = score_group(GROUPS[name], "key", original, estimate)

        assert scores.values.keys() <= MEAN_SOMETHING
        assert scores.text is None
        assert set(scores.missing.values()) <= {SILENT_ORIGINAL}
        if name != "words":
            assert scores.values.keys() | scores.missing.keys() == set(GROUPS[name].names)


def test_dither_counts_as_silence() -> None:
    dither = np.random.default_rng(4).integers(-1, 2, 32_000).astype(np.float32) / 32768

    for measure in (estoi, pesq_nb, pesq_wb):
        with pytest.raises(Unmeasurable, match="the reference is silent"):
            measure(dither, faint_noise(), 16_000)
    with pytest.raises(Unmeasurable, match="the reference is silent"):
        visqol(dither, faint_noise(), 16_000, "speech")


def test_silent_clip_is_missing_for_every_system_and_no_silent_failure(
    tmp_path: Path, speech: np.ndarray
) -> None:
    pytest.importorskip("PIL", reason="pip install pillow")
    write_audio(tmp_path / "speech.wav", speech[:32_000])
    write_audio(tmp_path / "zeros.wav", SILENCE)
    lines = [{"id": each, "audio": f"{each}.wav", "text": "a b"} for each in ("speech", "zeros")]
    (tmp_path / "clips.jsonl").write_text("\n".join(map(json.dumps, lines)))
    # A codec that adds faint noise to what it gets.
    script = (
        "import sys, numpy, soundfile; x, r = soundfile.read(sys.argv[1]); "
        "soundfile.write(sys.argv[2], x + numpy.random.default_rng(0).normal(0, 1e-3, len(x)), r)"
    )
    (tmp_path / "noise.py").write_text(script)
    measures = tuple(n for n in ("words", "stoi", "pesq", "signal") if n in HERE)
    config = EvaluationConfig(
        manifests=(tmp_path / "clips.jsonl",),
        systems=(
            "copy=command:cp {in} {out}",
            f"noise=command:{sys.executable} {tmp_path}/noise.py {{in}} {{out}}",
        ),
        kbps={"copy": 256.0, "noise": 256.0},
        measures=measures,
        num_resamples=100,
        num_processes=0,
    )

    rows = {(r.system, r.id): r for r in evaluate(config, tmp_path / "out").rows}

    for system in ("original", "copy", "noise"):
        assert rows[system, "zeros"].scores.keys() == {"mel_distance", "stft_distance"}
        assert set(rows[system, "zeros"].missing.values()) == {SILENT_ORIGINAL}
        assert not rows[system, "zeros"].counts
        assert not rows[system, "zeros"].is_silent
        assert rows[system, "speech"].scores["pesq"] > 1
    assert rows["copy", "zeros"].scores["mel_distance"] == 0
    assert rows["noise", "zeros"].scores["mel_distance"] > 0.1
