import json
import os
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from tests.teachers.conftest import speech_like

from dmcodec.audio import read_audio, remove_dc, write_audio
from dmcodec.corpus.manifest import Utterance, read_manifest
from dmcodec.teachers.extract import CodecFrames, build_teacher, extract, teacher_settings
from dmcodec.teachers.speech import SpeechTeacherConfig
from dmcodec.teachers.store import FeatureStore, StoreError, list_shards
from dmcodec.teachers.text import TextTeacherConfig
from dmcodec.teachers.words import SttConfig

FRAMES = CodecFrames(sample_rate=16_000, hop_length=320)
LENGTHS = [5_000, 1, 8_000, 3_200, 6_401, 4_000]


@pytest.fixture(scope="module")
def utterances(tmp_path_factory) -> list[Utterance]:
    folder = tmp_path_factory.mktemp("speech")
    made = []
    for number, length in enumerate(LENGTHS):
        path = folder / f"u{number}.wav"
        write_audio(path, speech_like(length, seed=number))
        made.append(Utterance(id=f"u{number}", audio=path))
    return made


@pytest.fixture(scope="module")
def text_config(language_model, utterances) -> TextTeacherConfig:
    """Three words in each utterance but the last, which has none."""
    path = utterances[0].audio.parent / "words.jsonl"
    words = [
        {"text": text, "start_s": 0.05 * i, "end_s": 0.05 * i + 0.04}
        for i, text in enumerate(["hello", "world", "again"])
    ]
    lines = [{"id": each.id, "words": words} for each in utterances[:-1]]
    lines.append({"id": utterances[-1].id, "words": []})
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return TextTeacherConfig(
        language_model=str(language_model), stt=SttConfig(kind="given", word_times=path)
    )


def contents(folder: Path) -> dict[str, np.ndarray]:
    store = FeatureStore(folder)
    return {each: store.read(each)[0] for each in sorted(store.utterance_ids)}


def assert_same(folder: Path, other: Path) -> None:
    a, b = contents(folder), contents(other)
    assert a.keys() == b.keys()
    for key, values in a.items():
        np.testing.assert_array_equal(values, b[key])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, utterances, text_config) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "text"
    extract(utterances, folder, text_config, FRAMES, shard_size=2)
    return folder


def test_every_utterance_gets_its_codecs_frames_and_words(whole, utterances, text_config):
    store = FeatureStore(whole, settings=teacher_settings(text_config, FRAMES))

    assert store.utterance_ids == [each.id for each in utterances]
    assert [store.num_frames(each.id) for each in utterances] == [-(-n // 320) for n in LENGTHS]
    assert [word.text for word in store.words("u0")] == ["hello", "world", "again"]
    assert store.read("u0")[1].tolist()[:8] == [True] * 4 + [False, True, True, False]
    assert not store.read("u5")[1].any()
    assert len(list_shards(whole)) == 3


def test_stored_features_are_the_teachers_rounded_to_float16(tmp_path, utterances, speech_model):
    config = SpeechTeacherConfig(model=str(speech_model))
    summary = extract(utterances, tmp_path / "s", config, FRAMES)
    store = FeatureStore(tmp_path / "s")

    teacher = build_teacher(config, FRAMES)
    for each, length in zip(utterances, LENGTHS, strict=True):
        waveform = remove_dc(read_audio(each.audio))
        track, _ = teacher.track(waveform, None, each.id, -(-length // 320))
        np.testing.assert_array_equal(store.read(each.id)[0], track.dense().astype(np.float16))
    assert (summary.num_done, summary.num_without_features) == (6, 1)  # one sample is too little


def test_second_run_does_what_is_missing_and_lists_what_failed(
    tmp_path, utterances, text_config, whole
):
    lost = Utterance(id="u2", audio=tmp_path / "lost.wav")
    first = [utterances[0], lost, utterances[1]]
    seen: list[tuple[int, int]] = []

    summary = extract(
        first, tmp_path / "s", text_config, FRAMES, progress=lambda *p: seen.append(p)
    )
    failed = json.loads((tmp_path / "s" / "failed.jsonl").read_text())
    rest = read_manifest(tmp_path / "s" / "failed.jsonl")
    again = extract(utterances, tmp_path / "s", text_config, FRAMES, shard_size=3)

    assert (summary.num_done, summary.num_before, summary.failures) == (2, 0, [failed])
    assert summary.total == 3
    assert failed["id"] == "u2"
    assert "lost.wav" in failed["reason"]
    assert rest == [lost]
    assert seen == [(0, 3), (3, 3)]
    assert (again.num_done, again.num_before, again.failures) == (4, 2, [])
    assert again.num_without_features == 1
    assert not (tmp_path / "s" / "failed.jsonl").exists()
    assert_same(tmp_path / "s", whole)


def test_two_processes_give_the_features_of_one(tmp_path, utterances, text_config, whole):
    extract(utterances, tmp_path / "s", text_config, FRAMES, num_processes=2, shard_size=2)

    assert_same(tmp_path / "s", whole)


def _extract_slowly(utterances, folder, config) -> None:
    extract(utterances, folder, config, FRAMES, shard_size=1, progress=lambda *_: time.sleep(0.2))


def test_killed_job_goes_on_where_it_was(tmp_path, utterances, text_config, whole):
    folder = tmp_path / "s"
    # fork: the child has the packages loaded already.
    child = get_context("fork").Process(
        target=_extract_slowly, args=(utterances, folder, text_config)
    )
    child.start()
    while not folder.exists() or len(list_shards(folder)) < 2:
        assert child.is_alive()
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    num_before = len(FeatureStore(folder))

    summary = extract(utterances, folder, text_config, FRAMES)

    assert 2 <= num_before < len(utterances)
    assert (summary.num_before, summary.num_done) == (num_before, 6 - num_before)
    assert_same(folder, whole)


def test_store_of_another_teacher_is_refused_before_any_work(
    whole, utterances, text_config, speech_model
):
    before = contents(whole)
    for config in (
        text_config.model_copy(update={"layers": "last"}),
        SpeechTeacherConfig(model=str(speech_model)),
    ):
        with pytest.raises(StoreError, match="other settings"):
            extract(utterances, whole, config, FRAMES)
    with pytest.raises(StoreError, match="hop_length: 320 there, 160 here"):
        extract(utterances, whole, text_config, CodecFrames(sample_rate=16_000, hop_length=160))
    assert contents(whole).keys() == before.keys()


def test_settings_name_no_place(text_config):
    text = json.dumps(teacher_settings(text_config, FRAMES))

    assert "/" not in text
    assert '"teacher": "text"' in text
