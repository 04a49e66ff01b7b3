"""Random training segments: segment n is a function of (seed, n) and the utterances alone.

Nothing here counts or remembers: resuming, worker processes and ranks need no state but n.
The order in which n is asked for, batches and validation are in loader.py.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.data import Dataset

from dmcodec.audio import (
    MAX_SAMPLE_RATE,
    SAMPLE_RATE,
    Waveform,
    remove_dc,
    samples_to_seconds,
)
from dmcodec.config import Record
from dmcodec.corpus.lines import Columns
from dmcodec.corpus.manifest import Utterance
from dmcodec.corpus.sources import measure, read_utterance
from dmcodec.data.decoded import DecodedSpeech, decode_to_disk, decode_to_memory
from dmcodec.data.features import SegmentGuidance, TeacherStores
from dmcodec.tokens.bitstream import count_frames
from dmcodec.tokens.shards import read_rows

logger = logging.getLogger(__name__)

# The largest value a 16-bit file can hold: a segment written to disk keeps every sample.
_FULL_SCALE = 32767 / 32768
# A manifest may round its durations; a larger difference means it describes another file.
_LENGTH_TOLERANCE_S = 0.1


class DataConfig(Record):
    """Which speech is trained on, and how segments are cut from it.

    Attributes:
        train_manifests: read by `dmcodec.corpus.manifest.read_manifests`.
        valid_manifest: held-out speakers, for validation.
        columns: our keys -> names of columns that both kinds of lists have for them, as
            `--column text=sentence` of the commands; see `read_manifests`.
        sample_rate: Hz; files at other rates are resampled.
        hop_length: segments start at, and last, whole frames of this many samples.
        segment_samples: length of a segment. The paper trains on 3 s.
        min_samples: shorter utterances are left out (counted and logged).
        corpus_weights: beginning of a corpus name -> its share of the segments; the longest
            beginning that fits counts, every corpus needs one, 0 leaves it out. Empty: each
            corpus by its duration.
        gain_db: range of the random gain, uniform in dB.
        use_polarity_flip: turn half of the segments upside down.
        use_preload: decode everything once into memory as 16-bit integers (2 bytes a sample:
            115 MB an hour at 16 kHz). Gives the same segments; files that are not 16-bit mono at
            `sample_rate` are rounded to 16 bits. Measured for 1 s of FLAC: 0.8 ms a segment from
            disk, 0.06 ms preloaded, so that no worker process is needed.
        cache: folder for a file of these integers instead, which processes and runs share
            (decoded.py); where memory does not hold it, the disk is read.
        codes: folder of `dmcodec tokenize` with the codes of every utterance, which segments then
            carry: a frozen encoder need not run. Codes belong to the sound as it is, so there is
            no gain and no flip then.
    """

    train_manifests: tuple[Path, ...] = Field(min_length=1)
    valid_manifest: Path | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    sample_rate: int = Field(default=SAMPLE_RATE, ge=1, le=MAX_SAMPLE_RATE)
    hop_length: int = Field(default=320, ge=1, le=65535)
    segment_samples: int = Field(default=48_000, ge=1, le=1 << 24)
    min_samples: int = Field(default=1, ge=1)
    corpus_weights: dict[str, float] = Field(default_factory=dict)
    gain_db: tuple[float, float] = (-12.0, 6.0)
    use_polarity_flip: bool = True
    use_preload: bool = False
    cache: Path | None = None
    codes: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        Columns(self.columns)  # refuses keys that there are not
        if self.segment_samples % self.hop_length:
            raise ValueError(
                f"segment_samples = {self.segment_samples} is not a whole number of frames of "
                f"hop_length = {self.hop_length} samples"
            )
        if not -math.inf < self.gain_db[0] <= self.gain_db[1] < math.inf:
            raise ValueError(f"gain_db must be (lowest, highest) and finite, got {self.gain_db}")
        if self.use_preload and self.cache is not None:
            raise ValueError(
                "decoded audio is in memory (use_preload) or on disk (cache): not both"
            )
        if self.codes is not None and (self.gain_db != (0.0, 0.0) or self.use_polarity_flip):
            raise ValueError(
                "stored codes are those of the sound as it is: with codes, set gain_db = [0, 0] "
                "and use_polarity_flip = false"
            )
        weights = self.corpus_weights.values()
        if weights and not (min(weights) >= 0 and 0 < sum(weights) < math.inf):
            raise ValueError(
                f"corpus_weights must be finite, not negative, and not all 0, got "
                f"{self.corpus_weights}"
            )
        return self


class Segment(NamedTuple):
    """One training segment.

    Attributes:
        waveform: float32 `[1, T]`, DC removed, within full scale, zero from `num_samples` on.
        num_samples: real samples, T unless the utterance is shorter than the segment.
        utterance_index: into the dataset's `utterances`.
        start_samples: where the segment begins in its utterance, a multiple of `hop_length`:
            the frames of features that belong to it begin at `start_samples // hop_length`.
        guidance: what teachers say about it; None without stores.
        codes: int64 `[K, L]`, those of the whole utterance cut with it, zero beyond its frames;
            None without stored codes.
    """

    waveform: Tensor
    num_samples: int
    utterance_index: int
    start_samples: int
    guidance: SegmentGuidance | None = None
    codes: Tensor | None = None


class SegmentDataset(Dataset[Segment]):
    """Endless training segments; `dataset[n]` is the same for the same seed, n and utterances.

    A corpus is drawn by its weight, an utterance in it by its duration, then a start on the frame
    grid. The mean of the segment's own samples is its DC: reading the whole file for a better
    estimate would cost many times the segment, and over a second of speech the two hardly differ.

    Reads every header once at the start (0.3 ms a file), so that a missing or damaged file
    stops the run before it begins; damage inside a file is an error naming it when it is met.

    Args:
        utterances: to train on. `utterances` keeps those that are used.
        config: see `DataConfig`; its manifests are not read here.
        seed: of everything random.
        stores: of teachers, whose features are cut with the audio.

    Raises:
        FileNotFoundError: a sound file is missing.
        AudioError: a sound file is damaged.
        StoreError: a store lacks an utterance, or has it with another length.
        ShardError: a shard of stored codes is damaged.
        ValueError: a length contradicts its manifest, corpus weights do not fit the corpora, or
            nothing is left to train on.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        config: DataConfig,
        *,
        seed: int,
        stores: TeacherStores | None = None,
    ) -> None:
        if seed < 0:
            raise ValueError(f"the seed must not be negative, got {seed}")
        self.config = config
        self.seed = seed
        lengths = {index: _measure(each, config) for index, each in enumerate(utterances)}
        kept = [index for index, length in lengths.items() if length >= config.min_samples]
        if not kept:
            raise ValueError(
                f"none of {len(utterances)} utterances has min_samples = {config.min_samples}"
            )
        self.utterances = [utterances[index] for index in kept]
        self.num_samples = np.array([lengths[index] for index in kept], dtype=np.int64)
        self._stores = stores
        if stores is not None:
            stores.check(self.utterances, self.num_samples.tolist(), config.hop_length)
        self._groups = _group_by_weight(self.utterances, self.num_samples, config.corpus_weights)
        logger.info(
            "training data: %d utterances, %.1f min; %d shorter than %.2f s left out",
            len(kept),
            samples_to_seconds(int(self.num_samples.sum()), config.sample_rate) / 60,
            len(utterances) - len(kept),
            samples_to_seconds(config.min_samples, config.sample_rate),
        )
        self._decoded = self._decode()
        self._codes = self._read_codes(config.codes) if config.codes is not None else None

    def __getitem__(self, n: int) -> Segment:
        """Segment number n, for any n from 0 up (there is no last one)."""
        if n < 0:
            raise IndexError(f"segments are numbered from 0, got {n}")
        config = self.config
        # The order of the draws is part of the data: a new draw goes after the last one.
        rng = np.random.default_rng([self.seed, n])
        index = self._groups.draw(rng)
        last_start = max(0, int(self.num_samples[index]) - config.segment_samples)
        start_samples = config.hop_length * int(rng.integers(last_start // config.hop_length + 1))
        gain = 10 ** (rng.uniform(*config.gain_db) / 20)
        sign = -1.0 if rng.random() < 0.5 and config.use_polarity_flip else 1.0

        num_samples = min(config.segment_samples, int(self.num_samples[index]) - start_samples)
        real = remove_dc(self._read(index, start_samples, num_samples))
        peak = float(np.abs(real).max())
        if peak * gain > _FULL_SCALE:
            gain = _FULL_SCALE / peak  # a louder segment would clip: it gets less gain instead
        waveform = np.zeros((1, config.segment_samples), dtype=np.float32)
        waveform[0, :num_samples] = real * np.float32(sign * gain)
        guidance = None
        if self._stores is not None:
            guidance = self._stores.cut(
                self.utterances[index].id,
                start_samples=start_samples,
                num_samples=num_samples,
                num_frames=config.segment_samples // config.hop_length,
                hop_length=config.hop_length,
                sample_rate=config.sample_rate,
            )
        codes = self.codes(index, start_samples) if self._codes is not None else None
        return Segment(
            torch.from_numpy(waveform), num_samples, index, start_samples, guidance, codes
        )

    def codes(self, index: int, start_samples: int = 0) -> Tensor:
        """Stored codes `[K, L]` of the segment that begins there, zero beyond the utterance."""
        assert self._codes is not None
        num_frames = self.config.segment_samples // self.config.hop_length
        first = start_samples // self.config.hop_length
        found = self._codes[index][:, first : first + num_frames]
        codes = torch.from_numpy(found.astype(np.int64))
        return F.pad(codes, (0, num_frames - codes.shape[1]))

    def _read_codes(self, folder: Path) -> list[npt.NDArray[np.uint16]]:
        """The codes of each utterance, [K, L] of all its frames."""
        stored = {row.id: row for row in read_rows(folder)}
        found = []
        for utterance, num_samples in zip(self.utterances, self.num_samples.tolist(), strict=True):
            row = stored.get(utterance.id)
            expected = count_frames(num_samples, self.config.hop_length)
            if row is None or row.codes.shape[1] != expected:
                have = "no codes" if row is None else f"{row.codes.shape[1]} frames"
                raise ValueError(
                    f"{folder} has {have} of utterance {utterance.id!r}, which lasts {expected} "
                    "frames: tokenize the training lists again with the codec of init_from"
                )
            found.append(row.codes)
        return found

    def _decode(self) -> DecodedSpeech | None:
        """All of the speech, decoded; None where segments are read from their files."""
        speech = (self.utterances, self.num_samples.tolist(), self.config.sample_rate)
        if self.config.cache is not None:
            return decode_to_disk(self.config.cache, *speech)
        return decode_to_memory(*speech) if self.config.use_preload else None

    def _read(self, index: int, start_samples: int, num_samples: int) -> Waveform:
        if self._decoded is not None:
            return self._decoded.read(index, start_samples, num_samples)
        return read_utterance(
            self.utterances[index],
            sample_rate=self.config.sample_rate,
            start_samples=start_samples,
            num_samples=num_samples,
        )


class _WeightedGroups:
    """Draws an utterance: first its group by weight, then itself by duration."""

    def __init__(
        self,
        members: Sequence[Sequence[int]],
        weights: Sequence[float],
        num_samples: npt.NDArray[np.int64],
    ) -> None:
        self._weight_ends = np.cumsum(np.asarray(weights, dtype=np.float64) / sum(weights))
        self._members = [np.asarray(each, dtype=np.int64) for each in members]
        self._sample_ends = [np.cumsum(num_samples[each]) for each in self._members]

    def draw(self, rng: np.random.Generator) -> int:
        """The index of an utterance; takes two numbers from `rng`."""
        position = rng.random() * self._weight_ends[-1]
        group = int(np.searchsorted(self._weight_ends, position, side="right"))
        ends = self._sample_ends[group]
        member = int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))
        return int(self._members[group][member])


def _group_by_weight(
    utterances: Sequence[Utterance],
    num_samples: npt.NDArray[np.int64],
    corpus_weights: Mapping[str, float],
) -> _WeightedGroups:
    """Groups of utterances with the shares that `corpus_weights` gives them."""
    if not corpus_weights:
        return _WeightedGroups([range(len(utterances))], [1.0], num_samples)
    members: dict[str, list[int]] = {prefix: [] for prefix in corpus_weights}
    for index, utterance in enumerate(utterances):
        corpus = utterance.corpus or ""
        fitting = [prefix for prefix in corpus_weights if corpus.startswith(prefix)]
        if not fitting:
            raise ValueError(
                f"corpus {corpus!r} (utterance {utterance.id!r}) has no entry in corpus_weights "
                f"{sorted(corpus_weights)}; give it a weight, 0 to leave it out"
            )
        members[max(fitting, key=len)].append(index)
    unused = [prefix for prefix, indices in members.items() if not indices]
    if unused:
        raise ValueError(f"corpus_weights names {unused}, but no utterance's corpus fits")
    used = [prefix for prefix, weight in corpus_weights.items() if weight > 0]
    return _WeightedGroups(
        [members[prefix] for prefix in used],
        [corpus_weights[prefix] for prefix in used],
        num_samples,
    )


def _measure(utterance: Utterance, config: DataConfig) -> int:
    """Length in samples at the training rate, from the file's header; the manifest must agree."""
    num_samples = measure(utterance, config.sample_rate)
    if utterance.num_samples is not None:
        stated_s = samples_to_seconds(utterance.num_samples)
        found_s = samples_to_seconds(num_samples, config.sample_rate)
        if abs(stated_s - found_s) > _LENGTH_TOLERANCE_S:
            raise ValueError(
                f"{utterance.audio}: lasts {found_s:.3f} s, its manifest says {stated_s:.3f} s "
                f"(utterance {utterance.id!r}); correct the manifest or the file"
            )
    return num_samples
