import errno
import fcntl
import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tokenize.conftest import contents

from dmcodec.audio import audio_info, read_audio, write_audio
from dmcodec.codec.model import Codec, Encoded
from dmcodec.corpus.manifest import Utterance, read_manifest
from dmcodec.corpus.sources import Source
from dmcodec.storage import FolderLost
from dmcodec.tokenize import job as job_module
from dmcodec.tokenize.job import (
    TokenizeReport,
    TooManyFailures,
    describe_corpus,
    tokenize,
)
from dmcodec.tokenize.pipeline import Speed
from dmcodec.tokens.bitstream import loads
from dmcodec.tokens.shards import read_info, read_rows

pa = pytest.importorskip("pyarrow", reason="shards are Parquet: pip install 'dmcodec[data]'")
pq = pytest.importorskip("pyarrow.parquet")

NUM_KILLS = 21


def run(
    codec: Codec,
    utterances: list[Utterance],
    output: Path,
    *,
    max_failures: int = 0,
    **settings: int,
) -> TokenizeReport:
    info = describe_corpus(codec, utterances, **{"shard_size": 4, **settings})
    return tokenize(codec, utterances, output, info, max_failures=max_failures)


def test_rows_are_those_of_single_files_each_once_in_order(
    codec: Codec, manifest: Path, tmp_path: Path
) -> None:
    utterances = read_manifest(manifest)

    job = run(codec, utterances, tmp_path)

    rows = list(read_rows(tmp_path))
    assert (job.num_done, job.num_before, job.failures) == (21, 0, [])
    assert [row.id for row in rows] == [each.id for each in utterances]
    for row, utterance in zip(rows, utterances, strict=True):
        alone = codec.encode(utterance.audio)
        np.testing.assert_array_equal(row.codes, alone.item(0))
        assert row.num_samples == alone.num_samples[0]
        assert (row.speaker, row.text) == (utterance.speaker, utterance.text)
        waveform = read_audio(utterance.audio).astype("<f4").tobytes()
        assert row.source_hash == blake2b(waveform, digest_size=16).hexdigest()
        assert row.model_hash == codec.fingerprint()


def test_speed_settings_do_not_change_a_byte(codec: Codec, manifest: Path, tmp_path: Path) -> None:
    utterances = read_manifest(manifest)
    info = describe_corpus(codec, utterances, shard_size=8)
    for name, speed in {
        "alone": Speed(batch_samples=1, num_readers=1),
        "together": Speed(batch_samples=10**9, num_readers=5),
    }.items():
        tokenize(codec, utterances, tmp_path / name, info, speed=speed)

    assert contents(tmp_path / "alone") == contents(tmp_path / "together")


def test_first_books_alone_are_the_beginning_of_all(
    codec: Codec, manifest: Path, tmp_path: Path
) -> None:
    utterances = read_manifest(manifest)
    run(codec, utterances, tmp_path / "all")
    run(codec, utterances, tmp_path / "two", num_codebooks=2)

    for two, every in zip(read_rows(tmp_path / "two"), read_rows(tmp_path / "all"), strict=True):
        np.testing.assert_array_equal(two.codes, every.codes[:2])


def test_searched_codes_are_those_of_single_files_and_the_width_is_recorded(
    codec: Codec, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utterances = read_manifest(manifest)[:5]

    run(codec, utterances, tmp_path / "a", search_width=5)
    with monkeypatch.context() as patch:
        patch.setattr("dmcodec.codec.model.LONG_FRAMES", 8)
        run(codec, utterances, tmp_path / "parts", search_width=5)

    for folder in ("a", "parts"):
        for row, utterance in zip(read_rows(tmp_path / folder), utterances, strict=True):
            alone = codec.encode(utterance.audio, search_width=5)
            np.testing.assert_array_equal(row.codes, alone.item(0))
    assert read_info(tmp_path / "a").search_width == 5
    with pytest.raises(ValueError, match="search_width was 5 and is 1"):
        run(codec, utterances, tmp_path / "a")


def test_greedy_shards_made_before_there_was_a_search_go_on(
    codec: Codec, manifest: Path, tmp_path: Path
) -> None:
    utterances = read_manifest(manifest)[:5]
    run(codec, utterances, tmp_path)
    path = tmp_path / "codec_info.json"
    said = json.loads(path.read_text())
    assert said.pop("search_width") == 1
    path.write_text(json.dumps(said))

    job = run(codec, utterances, tmp_path)

    assert (job.num_done, job.num_before) == (0, 5)


def test_row_decodes_to_what_its_file_decodes_to(
    codec: Codec, manifest: Path, tmp_path: Path
) -> None:
    utterances = read_manifest(manifest)
    run(codec, utterances, tmp_path)

    row = list(read_rows(tmp_path))[7]
    straight = codec.decode(codec.encode(utterances[7].audio))
    decoded = codec.decode(torch.from_numpy(row.codes.astype(np.int64)))[:, : row.num_samples]
    torch.testing.assert_close(decoded, straight, rtol=0, atol=0)


def test_long_utterances_are_read_in_parts_and_get_the_codes_of_the_whole(
    codec: Codec, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utterances = read_manifest(manifest)
    damaged = tmp_path / "damaged.flac"
    write_audio(damaged, 0.1 * np.random.default_rng(0).standard_normal(16_000))
    damaged.write_bytes(damaged.read_bytes()[:20_000])  # its header and first parts are sound
    utterances.insert(3, Utterance(id="damaged", audio=damaged))
    utterances.append(
        Utterance(id="cut", audio=utterances[1].audio, start_samples=77, num_samples=6_000)
    )
    run(codec, utterances, tmp_path / "whole", max_failures=1)
    reads: list[int] = []
    read_whole = Source.read

    def read(source: Source) -> np.ndarray:
        reads.append(source.num_samples)
        return read_whole(source)

    with monkeypatch.context() as patch:
        patch.setattr("dmcodec.codec.model.LONG_FRAMES", 10)  # 3200 samples
        patch.setattr("dmcodec.audio.PART_SECONDS", 0.08)
        patch.setattr(Source, "read", read)
        job = run(codec, utterances, tmp_path / "parts", max_failures=1)

    whole, parts = (list(read_rows(tmp_path / name)) for name in ("whole", "parts"))
    assert [row.id for row in parts] == [row.id for row in whole]
    assert max(reads) <= 3200 < max(row.num_samples for row in whole)
    assert len(reads) < len(whole) - 10
    for row, expected, utterance in zip(parts, whole, utterances[:3] + utterances[4:], strict=True):
        np.testing.assert_array_equal(row.codes, expected.codes)
        assert row.num_samples == expected.num_samples
        if audio_info(utterance.audio).sample_rate == 16_000:  # resampled parts differ by 1e-6
            assert row.source_hash == expected.source_hash
    assert [failure["id"] for failure in job.failures] == ["damaged"]
    assert "damaged.flac" in job.failures[0]["reason"]
    assert job.times.num_samples == sum(row.num_samples for row in whole)


def test_jobs_killed_at_random_end_as_one_that_was_not(
    codec: Codec, model: Path, manifest: Path, tmp_path: Path
) -> None:
    lines = manifest.read_text(encoding="utf-8").splitlines()
    lines.insert(9, '{"id": "gone", "audio": "gone.wav"}')
    manifest = manifest.with_name("with-failure.jsonl")
    manifest.write_text("\n".join(lines), encoding="utf-8")
    script = Path(__file__).with_name("killed_jobs.py")
    command = [sys.executable, script, model, manifest, tmp_path / "killed", "3", str(NUM_KILLS)]
    reports = [
        json.loads(line)
        for line in subprocess.run(
            [str(part) for part in command], check=True, capture_output=True, text=True
        ).stdout.splitlines()
    ]

    assert sum(report["killed"] for report in reports) == NUM_KILLS
    seen: dict[str, dict[str, list[int]]] = {}
    for report in reports:  # a finished shard is never written again
        before = seen.get(report["folder"], {})
        assert before.items() <= report["shards"].items()
        seen[report["folder"]] = report["shards"]
    sizes = [len(report["shards"]) for report in reports if report["killed"]]
    assert any(0 < size < 11 for size in sizes)  # some jobs were killed halfway

    utterances = read_manifest(manifest)
    info = describe_corpus(codec, utterances, shard_size=2, has_dmc=True)
    tokenize(codec, utterances, tmp_path / "whole", info, max_failures=1)
    expected = contents(tmp_path / "whole")
    assert len(list(read_rows(tmp_path / "whole"))) == 21
    assert "gone.wav: no such file" in expected["failures.jsonl"].decode()
    for folder in seen:
        tokenize(codec, utterances, Path(folder), info)
        assert contents(Path(folder)) == expected


def test_finished_job_has_nothing_to_do(codec: Codec, manifest: Path, tmp_path: Path) -> None:
    utterances = read_manifest(manifest)
    run(codec, utterances, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}

    job = run(codec, utterances, tmp_path)

    assert (job.num_done, job.num_before) == (0, 21)
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.parquet")} == before


@pytest.fixture
def faulty(manifest: Path, tmp_path: Path) -> list[Utterance]:
    """Ten utterances, of which 1, 3, 4, 6, 7 and 9 cannot be encoded."""
    folder = tmp_path / "faulty"
    folder.mkdir()
    noise = np.random.default_rng(0).standard_normal(2000).astype(np.float32) * 0.1
    for number in range(10):
        write_audio(folder / f"{number}.wav", noise)
    (folder / "1.wav").write_bytes(b"")
    (folder / "3.wav").write_bytes(b"RIFF nonsense")
    (folder / "4.wav").unlink()
    write_audio(folder / "6.wav", np.tile(noise, 5))
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(folder / "7.wav", np.append(noise, np.nan), 16_000, subtype="FLOAT")
    whole = (folder / "9.wav").read_bytes()
    (folder / "9.wav").write_bytes(whole[:-800])
    return [Utterance(id=str(n), audio=folder / f"{n}.wav") for n in range(10)]


def test_what_cannot_be_encoded_is_listed_with_its_reason(
    codec: Codec, faulty: list[Utterance], tmp_path: Path
) -> None:
    job = run(codec, faulty, tmp_path / "out", max_failures=6, max_samples=9_999)

    reasons = {failure["id"]: failure["reason"] for failure in job.failures}
    assert [row.id for row in read_rows(tmp_path / "out")] == ["0", "2", "5", "8"]
    assert list(reasons) == ["1", "3", "4", "6", "7", "9"]
    assert "the file is empty (0 bytes)" in reasons["1"]
    assert "cannot be read as sound" in reasons["3"]
    assert "4.wav: no such file" in reasons["4"]
    assert "lasts 0.6 s, more than the 0.624938 s" in reasons["6"]
    assert "NaN or infinite samples" in reasons["7"]
    assert "cut short" in reasons["9"]

    again = run(codec, faulty, tmp_path / "out", max_failures=6, max_samples=9_999)
    assert (again.num_done, again.num_before) == (0, 4)
    assert again.failures == job.failures


def test_list_of_failures_is_a_manifest(
    codec: Codec, faulty: list[Utterance], tmp_path: Path
) -> None:
    run(codec, faulty, tmp_path / "out", max_failures=6, max_samples=9_999)

    rest = read_manifest(tmp_path / "out" / "failures.jsonl")

    assert rest == [faulty[n] for n in (1, 3, 4, 6, 7, 9)]


def test_too_many_failures_stop_the_job_until_more_are_allowed(
    codec: Codec, faulty: list[Utterance], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for _ in range(2):  # shard 0 has two, shard 1 two more
        with pytest.raises(
            TooManyFailures, match=r"^3 of 10 .* more than --max-failures 2"
        ) as stop:
            run(codec, faulty, out, max_failures=2, shard_size=5, max_samples=9_999)
        assert "1: " in str(stop.value)
        assert len(list(out.glob("*.parquet"))) == 1
        assert len((out / "failures.jsonl").read_text().splitlines()) == 3

    job = run(codec, faulty, out, max_failures=6, shard_size=5, max_samples=9_999)
    assert (job.num_done, job.num_before, len(job.failures)) == (2, 2, 6)


def test_progress_counts_what_was_there_and_what_failed(
    codec: Codec, faulty: list[Utterance], tmp_path: Path
) -> None:
    out, seen = tmp_path / "out", []
    with pytest.raises(TooManyFailures):  # after shard 0
        run(codec, faulty, out, max_failures=2, shard_size=5)
    info = describe_corpus(codec, faulty, shard_size=5)

    tokenize(codec, faulty, out, info, max_failures=5, progress=lambda *told: seen.append(told))

    assert seen[0] == ("tokenizing", 5, 10)
    assert seen[-1] == ("tokenizing", 10, 10)
    assert seen == sorted(seen)


def test_changed_model_or_setting_or_manifest_is_refused(
    codec: Codec, manifest: Path, tmp_path: Path
) -> None:
    utterances = read_manifest(manifest)
    run(codec, utterances, tmp_path)
    before = contents(tmp_path)

    for settings in ({"shard_size": 5}, {"num_codebooks": 1}, {"max_samples": 7}, {"has_dmc": 1}):
        ((name, value),) = settings.items()
        with pytest.raises(ValueError, match=rf"{name} was \w+ and is (True|{value})\."):
            run(codec, utterances, tmp_path, **settings)
    with pytest.raises(ValueError, match=r"manifest_hash was .*; num_utterances was 21 and is 20"):
        run(codec, utterances[:-1], tmp_path)
    other = [utterances[0].model_copy(update={"start_samples": 0}), *utterances[1:]]
    with pytest.raises(ValueError, match=r"manifest_hash was \S+ and is \S+\. Use the same"):
        run(codec, other, tmp_path)
    with torch.no_grad():
        codec.quantizer.codebooks.mul_(2)
    with pytest.raises(ValueError, match="model_hash was"):
        run(codec, utterances, tmp_path)
    assert contents(tmp_path) == before


def test_moved_sound_and_a_renamed_model_are_the_same_job(
    codec: Codec, manifest: Path, tmp_path: Path
) -> None:
    utterances = read_manifest(manifest)
    run(codec, utterances, tmp_path)
    moved = [u.model_copy(update={"audio": Path("/new") / u.audio.name}) for u in utterances]
    codec.model_id = "another-name"

    assert run(codec, moved, tmp_path).num_before == 21


def test_damaged_or_foreign_shards_are_refused(
    codec: Codec, manifest: Path, tmp_path: Path
) -> None:
    utterances = read_manifest(manifest)
    run(codec, utterances, tmp_path / "a")
    run(codec, utterances, tmp_path / "b", num_codebooks=1)
    shard = tmp_path / "a" / "shard-000002.parquet"
    data = shard.read_bytes()

    shard.write_bytes(data[:-9])
    with pytest.raises(ValueError, match=r"shard-000002\.parquet is damaged .* remove it"):
        run(codec, utterances, tmp_path / "a")
    shard.write_bytes((tmp_path / "b" / "shard-000002.parquet").read_bytes())
    with pytest.raises(ValueError, match=r"shard-000002\.parquet was made with other settings"):
        run(codec, utterances, tmp_path / "a")
    (tmp_path / "b" / "codec_info.json").unlink()
    with pytest.raises(ValueError, match=r"but no codec_info\.json"):
        run(codec, utterances, tmp_path / "b")


def test_full_disk_stops_the_job_and_the_next_goes_on(
    codec: Codec, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utterances = read_manifest(manifest)
    run(codec, utterances, tmp_path / "whole")
    write, written = job_module.write_durably, []

    def write_until_full(path: Path, data: bytes) -> None:
        written.append(path)
        if len(written) == 4:  # codec_info.json, two shards, and no room for the third
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(job_module, "write_durably", write_until_full)
        with pytest.raises(OSError, match="No space left"):
            run(codec, utterances, tmp_path / "out")
    job = run(codec, utterances, tmp_path / "out")

    assert (job.num_done, job.num_before) == (13, 8)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_two_jobs_do_not_share_a_folder(codec: Codec, manifest: Path, tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another job is writing"):
            run(codec, read_manifest(manifest), tmp_path)


def test_leftovers_of_killed_jobs_are_removed(codec: Codec, manifest: Path, tmp_path: Path) -> None:
    left = tmp_path / "dmc" / "s" / ".1.x.dmc.77.part"
    left.parent.mkdir(parents=True)
    left.touch()
    (tmp_path / ".shard-000001.parquet.77.part").write_bytes(b"half a sha")

    run(codec, read_manifest(manifest), tmp_path)

    assert list(tmp_path.rglob(".*.part")) == []


def test_dmc_files_hold_the_codes_of_the_rows(codec: Codec, manifest: Path, tmp_path: Path) -> None:
    run(codec, read_manifest(manifest), tmp_path, has_dmc=True)

    for row in read_rows(tmp_path):
        file = loads((tmp_path / "dmc" / f"{row.id}.dmc").read_bytes())
        np.testing.assert_array_equal(file.codes, row.codes)
        assert file.header.num_samples == row.num_samples
        assert file.header.model_hash == row.model_hash


def test_segments_are_encoded_as_if_they_were_files(codec: Codec, tmp_path: Path) -> None:
    waveform = (0.1 * np.random.default_rng(1).standard_normal(32_000)).astype(np.float32)
    write_audio(tmp_path / "long.wav", waveform)
    kept = read_audio(tmp_path / "long.wav")
    spans = {"a": (0, 9_000), "b": (9_000, 7_001), "c": (16_001, None)}
    utterances = [
        Utterance(id=name, audio=tmp_path / "long.wav", start_samples=start, num_samples=length)
        for name, (start, length) in spans.items()
    ]

    run(codec, utterances, tmp_path / "out")

    for row, (start, length) in zip(read_rows(tmp_path / "out"), spans.values(), strict=True):
        part = kept[start:] if length is None else kept[start : start + length]
        np.testing.assert_array_equal(row.codes, codec.encode(part).item(0))


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_containers_give_the_rows_of_their_files(
    codec: Codec, manifest: Path, tmp_path: Path, kind: str
) -> None:
    utterances = read_manifest(manifest)
    sounds = {each.id: each.audio.read_bytes() for each in utterances}
    if kind == "tar":
        with tarfile.open(tmp_path / "all.tar", "w") as tar:
            for number, data in enumerate(sounds.values()):
                member = tarfile.TarInfo(f"{number:02}.wav")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    else:
        columns = {"id": list(sounds), "audio": [{"bytes": data} for data in sounds.values()]}
        pq.write_table(pa.table(columns), tmp_path / "all.parquet", row_group_size=5)
    run(codec, utterances, tmp_path / "files")

    run(codec, read_manifest(tmp_path / f"all.{kind}"), tmp_path / "out")

    rows = zip(read_rows(tmp_path / "out"), read_rows(tmp_path / "files"), strict=True)
    for found, expected in rows:
        np.testing.assert_array_equal(found.codes, expected.codes)
        assert found.source_hash == expected.source_hash


def test_files_are_read_while_the_network_works(
    codec: Codec, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utterances = read_manifest(manifest)
    reads_begun, has_begun = 0, threading.Condition()
    read, encode = Source.read, codec.encode

    def counted_read(source: Source) -> np.ndarray:
        nonlocal reads_begun
        with has_begun:
            reads_begun += 1
            has_begun.notify_all()
        return read(source)

    num_encoded, was_ahead = 0, []

    def encode_when_next_is_read(waveforms: list[np.ndarray], **settings: int) -> Encoded:
        nonlocal num_encoded
        num_encoded += len(waveforms)
        with has_begun:  # in vain where reading waits for the network
            if num_encoded < 6:
                was_ahead.append(has_begun.wait_for(lambda: reads_begun > num_encoded, 10))
        return encode(waveforms, **settings)

    monkeypatch.setattr(Source, "read", counted_read)
    monkeypatch.setattr(codec, "encode", encode_when_next_is_read)
    info = describe_corpus(codec, utterances[:6], shard_size=3)
    speed = Speed(batch_samples=1, num_readers=1)  # a batch for each utterance
    tokenize(codec, utterances[:6], tmp_path / "out", info, speed=speed)

    assert was_ahead == [True] * 5  # the last has no next


def test_shard_copied_over_a_missing_one_is_no_reason_to_skip_it(
    codec: Codec, manifest: Path, tmp_path: Path
) -> None:
    utterances = read_manifest(manifest)
    run(codec, utterances, tmp_path)
    shutil.copy(tmp_path / "shard-000001.parquet", tmp_path / "shard-000003.parquet")

    with pytest.raises(ValueError, match=r"000003\.parquet is a copy of shard 1.*: remove it"):
        run(codec, utterances, tmp_path)


def test_folder_deleted_under_a_job_ends_it(
    codec: Codec, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = job_module.write_durably, []

    def write_then_delete(path: Path, data: bytes) -> None:
        write(path, data)
        written.append(path)
        if len(written) == 2:
            shutil.rmtree(tmp_path / "out")

    monkeypatch.setattr(job_module, "write_durably", write_then_delete)

    with pytest.raises(FolderLost, match="was deleted or replaced while the job was writing"):
        run(codec, read_manifest(manifest), tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_recording_without_codes_is_listed_and_spoils_no_other(
    codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    utterances = []
    for name in ("a", "bad", "c"):
        write_audio(tmp_path / f"{name}.wav", 0.1 * rng.standard_normal(3_000))
        utterances.append(Utterance(id=name, audio=tmp_path / f"{name}.wav"))
    expected = {name: codec.encode(tmp_path / f"{name}.wav").item(0).numpy() for name in "ac"}
    read = Source.read
    # As far beyond full scale as float32 goes: the network's sums are not finite.
    monkeypatch.setattr(
        Source,
        "read",
        lambda self: read(self) * np.float32(3e38 if "bad" in str(self.sound) else 1),
    )
    with monkeypatch.context() as patch:  # what comes through the door is not looked at twice
        patch.setattr("dmcodec.codec.model.to_waveforms", lambda audio, *rates: [
            torch.from_numpy(np.asarray(each)) for each in audio
        ])  # fmt: skip
        job = run(codec, utterances, tmp_path / "out", max_failures=1)

    assert [each["id"] for each in job.failures] == ["bad"]
    assert "have no codes" in job.failures[0]["reason"]
    rows = {row.id: row.codes for row in read_rows(tmp_path / "out")}
    assert rows.keys() == expected.keys()
    for name, codes in expected.items():
        np.testing.assert_array_equal(rows[name], codes)
