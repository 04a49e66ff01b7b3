"""The page of samples: clips of unseen speakers, through the bundled model and through Opus.

    python benchmarks/make_samples.py speech/test.jsonl -o docs/samples

Draws clips of different speakers by their names from a JSONL list, sends each through the model
with 8, 4, 2 and 1 books and through Opus at 6 and 12 kbps (opus-tools must be installed), and
writes MP3 files, which every browser plays, and index.md, which has players for them. `--model`
takes a codec folder instead. Nothing is replaced unless all of it could be made.
"""
# ruff: noqa: T201

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

import dmcodec
from dmcodec.evaluation.protocols import rank_clip
from dmcodec.evaluation.systems.opening import open_system
from dmcodec.evaluation.systems.parsing import parse_system
from dmcodec.evaluation.systems.system import System
from dmcodec.storage import replace_together

SAMPLE_RATE = 16_000
MAX_BYTES = 3_000_000
MIN_S, MAX_S = 3.0, 7.0
SYSTEMS = {
    "books-8": ("8 books", "dmcodec:{model}@1:8"),
    "books-4": ("4 books", "dmcodec:{model}@1:4"),
    "books-2": ("2 books", "dmcodec:{model}@1:2"),
    "books-1": ("1 book", "dmcodec:{model}@1"),
    "opus-6": ("Opus 6", "opus:6"),
    "opus-12": ("Opus 12", "opus:12"),
}
"""Name of the file -> what the page calls it, and the system as `dmcodec evaluate` reads it."""


@dataclass(frozen=True)
class Clip:
    """A line of the list; `audio` is resolved."""

    id: str
    audio: Path
    speaker: str
    text: str
    corpus: str
    licence: str


def main() -> None:
    """Makes the samples and says how large they are."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="bundled", help="or a codec folder")
    parser.add_argument("--num-clips", type=int, default=5)
    options = parser.parse_args()
    clips = choose_clips(read_list(options.manifest), options.num_clips)
    num_bytes = make_samples(clips, options.output, options.model)
    print(f"{len(clips)} clips, {num_bytes / 1e6:.2f} MB in {options.output}")


def read_list(path: Path) -> list[Clip]:
    """The clips of a JSONL list that name their speaker; relative paths start at its folder."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [
        Clip(
            id=line["id"],
            audio=path.parent / line["audio"],
            speaker=line["speaker"],
            text=line.get("text", ""),
            corpus=line.get("corpus", ""),
            licence=line.get("licence", ""),
        )
        for line in lines
        if line.get("speaker")
    ]


def choose_clips(clips: Sequence[Clip], count: int) -> list[Clip]:
    """Clips of 3 to 7 s of `count` different speakers, drawn by their names."""
    chosen: dict[str, Clip] = {}
    for clip in sorted(clips, key=lambda clip: rank_clip(clip.id)):
        if clip.speaker not in chosen and MIN_S <= soundfile.info(clip.audio).duration <= MAX_S:
            chosen[clip.speaker] = clip
    if len(chosen) < count:
        raise ValueError(f"{len(chosen)} speakers have clips of {MIN_S} to {MAX_S} s, not {count}")
    return list(chosen.values())[:count]


def make_samples(clips: Sequence[Clip], output: Path, model: str = "bundled") -> int:
    """Writes sounds and page into `output`; gives the bytes of all of it.

    Raises ValueError when they are more than a page should be, before anything is replaced.
    """
    systems = {
        name: open_system(parse_system(f"{name}={kind.format(model=model)}"))
        for name, (_, kind) in SYSTEMS.items()
    }
    with replace_together(output) as aside:
        sections = [
            clip_section(number, clip, systems, aside) for number, clip in enumerate(clips, start=1)
        ]
        page = "\n".join([introduction(model), *sections, licences(clips)])
        (aside / "index.md").write_text(page, encoding="utf-8")
        num_bytes = sum(path.stat().st_size for path in aside.iterdir())
        if num_bytes > MAX_BYTES:
            raise ValueError(f"{num_bytes:,} bytes of samples, more than {MAX_BYTES:,}")
    return num_bytes


def introduction(model: str) -> str:
    """What is heard, and by which model."""
    codec = dmcodec.load(None if model == "bundled" else model)
    return f"""# Samples

<!-- written by benchmarks/make_samples.py -->

Speakers that the model never heard, drawn by the names of the clips: `{codec.model_id}` (hash
{codec.fingerprint()}) with 8, 4, 2 and 1 of its books, beside Opus. The kbps are those of
the clip, without headers. All of it, the recordings too, is kept here as MP3 of about 70 kbps, so
that every browser plays it. How the same systems measure: [Figures](../results.md).
"""


def clip_section(number: int, clip: Clip, systems: dict[str, System], folder: Path) -> str:
    """Writes the sounds of a clip into `folder`; gives its heading, text and players."""
    waveform = dmcodec.read_audio(clip.audio, sample_rate=SAMPLE_RATE)
    seconds = len(waveform) / SAMPLE_RATE
    write_mp3(folder / f"{number}-original.mp3", waveform)
    players = [player(f"{number}-original.mp3", "Recording", 16 * SAMPLE_RATE / 1000)]
    for name, system in systems.items():
        result = system.reconstruct(waveform, SAMPLE_RATE, clip.id)
        sound = dmcodec.resample(result.waveform, result.sample_rate, SAMPLE_RATE)[: len(waveform)]
        write_mp3(folder / f"{number}-{name}.mp3", sound)
        assert result.num_bits is not None  # of these kinds it is known
        kbps = result.num_bits / seconds / 1000
        players.append(player(f"{number}-{name}.mp3", SYSTEMS[name][0], kbps))
    text = f"“{clip.text.capitalize()}”\n\n" if clip.text else ""
    about = f"{clip.corpus}, speaker {clip.speaker.rpartition('-')[2]}, {seconds:.1f} s"
    listed = "\n".join(players)
    return f"""
## {number}. {about.removeprefix(", ")}

{escape(text)}<div class="players" markdown="0">
{listed}
</div>
"""


def player(file: str, label: str, kbps: float) -> str:
    """A player with what it plays above it."""
    label = escape(label)
    return (
        f"<figure><figcaption><b>{label}</b> {kbps:.2f} kbps</figcaption>"
        f'<audio controls preload="none" aria-label="{label}" src="{file}"></audio></figure>'
    )


def licences(clips: Sequence[Clip]) -> str:
    """Whose recordings these are."""
    corpora = sorted({f"{clip.corpus} ({clip.licence})" for clip in clips if clip.licence})
    return f"\nRecordings: {', '.join(corpora)}.\n" if corpora else ""


def write_mp3(path: Path, waveform: NDArray[np.float32]) -> None:
    """Mono at 16 kHz with the best variable bitrate, about 70 kbps."""
    soundfile.write(
        path, waveform, SAMPLE_RATE, format="MP3", bitrate_mode="VARIABLE", compression_level=0.0
    )


if __name__ == "__main__":
    main()
