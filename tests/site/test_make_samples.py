"""benchmarks/make_samples.py: a page of players from a list."""

import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tests.scripts import load_script

import dmcodec
from dmcodec.codec.quantizer import QuantizerConfig
from dmcodec.codec.seanet import SEANetConfig

needs_opus = pytest.mark.skipif(shutil.which("opusenc") is None, reason="needs opus-tools")


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load_script("benchmarks/make_samples.py")


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Two clips of one speaker and one each of two others, of whom one speaks too briefly."""
    rng = np.random.default_rng(0)
    lines = []
    for number, (speaker, seconds) in enumerate(
        [("ann", 3.1), ("ann", 3.2), ("bo", 3.3), ("cy", 1)]
    ):
        waveform = (0.1 * rng.standard_normal(int(seconds * 16_000))).astype(np.float32)
        dmcodec.write_audio(tmp_path / f"{number}.wav", waveform)
        line = {"id": f"c{number}", "audio": f"{number}.wav", "speaker": f"corpus-{speaker}"}
        line |= {"text": "A < B", "corpus": "Corpus", "licence": "CC BY 4.0"}
        lines.append(json.dumps(line) + "\n")
    (tmp_path / "list.jsonl").write_text("".join(lines))
    return tmp_path / "list.jsonl"


@pytest.fixture
def model(tmp_path: Path) -> str:
    config = dmcodec.CodecConfig(
        seanet=SEANetConfig(num_filters=4, latent_dim=8, num_lstm_layers=1),
        quantizer=QuantizerConfig(codebook_size=1024, num_codebooks=8),
    )
    dmcodec.Codec(config).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_a_clip_of_each_speaker_is_chosen(program: ModuleType, listed: Path) -> None:
    clips = program.choose_clips(program.read_list(listed), 2)

    assert sorted(clip.speaker for clip in clips) == ["corpus-ann", "corpus-bo"]
    with pytest.raises(ValueError, match="2 speakers have clips"):
        program.choose_clips(program.read_list(listed), 3)


@needs_opus
def test_every_player_has_its_sound(
    program: ModuleType, listed: Path, model: str, tmp_path: Path
) -> None:
    clips = program.choose_clips(program.read_list(listed), 2)
    num_bytes = program.make_samples(clips, tmp_path / "samples", model)

    page = (tmp_path / "samples" / "index.md").read_text()
    files = re.findall(r'src="([^"]+)"', page)
    made = {path.name for path in (tmp_path / "samples").iterdir()}
    assert len(files) == 14
    assert {*files, "index.md"} == made
    assert num_bytes == sum(path.stat().st_size for path in (tmp_path / "samples").iterdir())
    assert page.count("8 books</b> 4.00 kbps") == 2  # of 10 bits, 50 a second
    assert "A &lt; b" in page
    assert "Corpus (CC BY 4.0)" in page
    for file in files:
        original = dmcodec.read_audio(listed.parent / f"{clips[int(file[0]) - 1].id[1:]}.wav")
        assert len(dmcodec.read_audio(tmp_path / "samples" / file)) == len(original)


@needs_opus
def test_too_much_of_it_replaces_nothing(
    program: ModuleType,
    listed: Path,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "index.md").write_text("before")
    monkeypatch.setattr(program, "MAX_BYTES", 1000)

    with pytest.raises(ValueError, match="more than 1,000"):
        program.make_samples(program.read_list(listed)[:1], tmp_path / "samples", model)

    assert [path.read_text() for path in (tmp_path / "samples").iterdir()] == ["before"]
