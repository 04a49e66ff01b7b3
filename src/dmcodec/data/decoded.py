"""Decoded speech as 16-bit integers, in memory or in a file that is mapped into it.

Reading a segment is then a copy of its samples: nothing is decoded while a GPU waits. Files that
are not 16-bit mono at the training rate are rounded to 16 bits, samples beyond full scale clipped.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dmcodec.audio import Waveform, from_int16, samples_to_seconds, to_int16
from dmcodec.corpus.manifest import Utterance
from dmcodec.corpus.sources import read_utterance
from dmcodec.storage import FolderInUse, lock_folder, open_whole

logger = logging.getLogger(__name__)

Integers = npt.NDArray[np.int16]

_FORMAT = "dmcodec-decoded/1"
_MAX_THREADS = 16
_LOOK_AGAIN_S = 0.5


class DecodedSpeech:
    """The samples of many utterances, one behind the other.

    Args:
        samples: [sum of num_samples] int16.
        num_samples: of each utterance.
    """

    def __init__(self, samples: Integers, num_samples: Sequence[int]) -> None:
        self._samples = samples
        self._starts = _starts(num_samples)

    def read(self, index: int, start_samples: int, num_samples: int) -> Waveform:
        """A slice [num_samples] of utterance `index`, float32."""
        start = int(self._starts[index]) + start_samples
        return from_int16(self._samples[start : start + num_samples])


def decode_to_memory(
    utterances: Sequence[Utterance], num_samples: Sequence[int], sample_rate: int
) -> DecodedSpeech:
    """All utterances in memory, 2 bytes a sample; raises what `read_utterance` does."""
    samples = np.empty(sum(num_samples), dtype=np.int16)

    def put(start: int, integers: Integers) -> None:
        samples[start : start + len(integers)] = integers

    _decode_all(utterances, num_samples, sample_rate, put)
    return DecodedSpeech(samples, num_samples)


def decode_to_disk(
    folder: Path, utterances: Sequence[Utterance], num_samples: Sequence[int], sample_rate: int
) -> DecodedSpeech:
    """All utterances in a file of `folder`, made where it is not there yet, and mapped into memory.

    Processes share the memory, and the next run starts at once. The file's name is a hash of the
    list, of the rate, and of the sound files' sizes and times: what changes gets a file of its own.
    While another process makes the file, this one waits.

    Raises what `read_utterance` does, and OSError for a disk that is full.
    """
    path = folder / f"decoded-{_key(utterances, num_samples, sample_rate)}.npy"
    while not path.is_file():
        try:
            with lock_folder(folder):
                if not path.is_file():
                    _write(path, utterances, num_samples, sample_rate)
        except FolderInUse:
            time.sleep(_LOOK_AGAIN_S)
    try:
        samples = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is damaged: delete it, and it is made anew ({error})") from error
    if samples.dtype != np.int16 or samples.shape != (sum(num_samples),):
        raise ValueError(f"{path} is damaged: delete it, and it is made anew")
    return DecodedSpeech(samples, num_samples)


def _write(
    path: Path, utterances: Sequence[Utterance], num_samples: Sequence[int], sample_rate: int
) -> None:
    with open_whole(path) as file:
        header = {"descr": "<i2", "fortran_order": False, "shape": (sum(num_samples),)}
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        first = file.tell()

        def put(start: int, integers: Integers) -> None:
            # Not through a map: a full disk would end the process there.
            content = integers.astype("<i2", copy=False).tobytes()
            done = 0
            while done < len(content):
                done += os.pwrite(file.fileno(), content[done:], first + 2 * start + done)

        _decode_all(utterances, num_samples, sample_rate, put)


def _decode_all(
    utterances: Sequence[Utterance],
    num_samples: Sequence[int],
    sample_rate: int,
    put: Callable[[int, Integers], None],
) -> None:
    """Decodes in threads (decoders leave Python to others), each result put where it belongs."""
    hours = samples_to_seconds(sum(num_samples), sample_rate) / 3600
    logger.info("decoding %.1f h of speech once, %.1f GB", hours, sum(num_samples) * 2 / 1e9)

    def work(utterance: Utterance, start: int, length: int) -> None:
        integers = to_int16(read_utterance(utterance, sample_rate=sample_rate))
        if len(integers) != length:
            raise ValueError(
                f"{utterance.audio}: {len(integers)} samples of utterance {utterance.id!r} were "
                f"decoded, its header says {length}"
            )
        put(start, integers)

    num_threads = min(_MAX_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(num_threads, thread_name_prefix="decoder") as pool:
        try:
            for _ in pool.map(work, utterances, _starts(num_samples).tolist(), num_samples):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _starts(num_samples: Sequence[int]) -> npt.NDArray[np.int64]:
    """Where each utterance begins, and the end of the last."""
    return np.concatenate([[0], np.cumsum(num_samples, dtype=np.int64)])


def _key(utterances: Sequence[Utterance], num_samples: Sequence[int], sample_rate: int) -> str:
    digest = blake2b(f"{_FORMAT} {sample_rate}".encode(), digest_size=16)
    for utterance, length in zip(utterances, num_samples, strict=True):
        status = utterance.audio.stat()
        place = (str(utterance.audio.absolute()), utterance.entry, utterance.start_samples)
        digest.update(repr((*place, length, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()
