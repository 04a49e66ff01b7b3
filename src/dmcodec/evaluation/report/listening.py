"""What the report lets you hear and see: players, spectrograms, best and worst clips.

Sounds are embedded as FLAC, pictures as WebP, while a budget of bytes lasts.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
import torch

from dmcodec.audio import SAMPLE_RATE, read_audio, samples_to_seconds
from dmcodec.evaluation.protocols import rank_clip
from dmcodec.evaluation.report.html import heading, table
from dmcodec.evaluation.rows import Row
from dmcodec.evaluation.summary import Summary, SystemSummary
from dmcodec.evaluation.systems.system import ORIGINAL
from dmcodec.evaluation.workspace import Workspace
from dmcodec.metrics.registry import MEASURES
from dmcodec.packages import import_package
from dmcodec.spectral import Mel, log_mel_spectrogram

_RANKING = ("pesq", "stoi", "mel_distance")
"""Best and worst clips are those of the first of these that was measured."""
_NUM_CLIPS = 3
_MIN_PLAYED_S, _MAX_PLAYED_S = 2.0, 6.5
_FLOOR_RANGE = 12.0  # natural logarithm of mel magnitude, shown from black to white
_MEL = Mel(sample_rate=SAMPLE_RATE, n_fft=1024, num_mels=80, hop_length=160, win_length=640)


class Budget:
    """How many bytes may still be embedded."""

    def __init__(self, num_bytes: int) -> None:
        self._left = num_bytes

    def spend(self, num_bytes: int) -> bool:
        """Takes the bytes if they are there."""
        if num_bytes > self._left:
            return False
        self._left -= num_bytes
        return True


def choose_played(rows: Sequence[Row]) -> list[str]:
    """Ids of clips to listen to: of different speakers, not long, drawn by name."""
    originals = {row.id: row for row in rows if row.system == ORIGINAL}
    chosen: list[Row] = []
    limits = SAMPLE_RATE * _MIN_PLAYED_S, SAMPLE_RATE * _MAX_PLAYED_S
    for row in sorted(originals.values(), key=lambda row: rank_clip(row.id)):
        is_new = row.speaker is None or row.speaker not in {other.speaker for other in chosen}
        if limits[0] <= row.num_samples <= limits[1] and is_new:
            chosen.append(row)
    if not chosen:
        chosen = sorted(originals.values(), key=lambda row: row.num_samples)
    return [row.id for row in chosen[:_NUM_CLIPS]]


def listen_section(
    summary: Summary,
    rows: Sequence[Row],
    workspace: Workspace,
    texts: Mapping[str, str],
    played: Iterable[str],
    budget: Budget,
) -> str:
    """Players and spectrograms of every system for the clips in `played`."""
    by_clip: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_clip.setdefault(row.id, {})[row.system] = row
    parts = [heading("Listen")]
    for clip in played:
        original = by_clip[clip][ORIGINAL]
        seconds = samples_to_seconds(original.num_samples)
        who = f", speaker {escape(original.speaker)}" if original.speaker else ""
        parts.append(f"<h3>{escape(clip)} ({seconds:.1f} s{who})</h3>")
        if clip in texts:
            parts.append(f"<p>“{escape(texts[clip])}”</p>")
        takes = [
            _take(system, by_clip[clip][system.name], workspace, budget)
            for system in summary.systems
        ]
        parts.append(f'<div class="takes">{"".join(takes)}</div>')
    return "\n".join(parts)


def _take(system: SystemSummary, row: Row, workspace: Workspace, budget: Budget) -> str:
    """One system's version of a clip: player, spectrogram, scores, what the recognizer heard."""
    scores = ", ".join(
        f"{MEASURES[name].label} {MEASURES[name].show(row.scores[name])}"
        for name in ("pesq", "stoi", "visqol", "wer")
        if name in row.scores
    )
    kbps = system.kbps
    rate = "" if kbps is None or system.name == ORIGINAL else f" {kbps:.2f} kbps"
    lines = [f"<p><b>{escape(system.name)}</b>{rate}</p>"]
    path = workspace.sound_path(system.name, row.id)
    if row.length_difference_samples is None:
        lines.append('<p class="soft">not reconstructed</p>')
    else:
        lines.append(_player(path, budget))
        lines.append(_spectrogram(path, f"spectrogram of {system.name}", budget))
    lines.append(f'<p class="soft">{scores}</p>')
    if row.transcript is not None:
        lines.append(f'<p class="soft">heard: {escape(row.transcript) or "nothing"}</p>')
    return f'<div class="take">{"".join(lines)}</div>'


def extremes_section(
    summary: Summary, rows: Sequence[Row], workspace: Workspace, budget: Budget
) -> str:
    """The best and the worst clip of each system, with players while the budget lasts."""
    measured = {name for row in rows for name in row.scores}
    ranking = next((name for name in _RANKING if name in measured), None)
    if ranking is None:
        return ""
    measure = MEASURES[ranking]
    lines = []
    for system in summary.systems:
        scored = [r for r in rows if r.system == system.name and ranking in r.scores]
        if system.name == ORIGINAL or not scored:
            continue
        sign = 1 if measure.better == "higher" else -1
        ordered = sorted(scored, key=lambda row: sign * row.scores[ranking])
        cells = [
            f'<td class="text">{escape(row.id)}<small>{measure.show(row.scores[ranking])}</small>'
            f"{_player(workspace.sound_path(system.name, row.id), budget)}</td>"
            for row in (ordered[-1], ordered[0])
        ]
        lines.append(f"<tr><th>{escape(system.name)}</th>{''.join(cells)}</tr>")
    listed = table(["system", "best clip", "worst clip"], lines, text_columns=(1, 2))
    return f"{heading('Best and worst')}<p>By {escape(measure.label)}.</p>{listed}"


def _player(path: Path, budget: Budget) -> str:
    data = path.read_bytes()
    if not budget.spend(len(data) * 4 // 3 + 100):
        return '<p class="soft">sound left out to keep the file small</p>'
    return f'<audio controls preload="none" src="{_data_address("audio/flac", data)}"></audio>'


def _spectrogram(path: Path, label: str, budget: Budget) -> str:
    """Log-mel spectrogram as a grey WebP picture, one pixel for 10 ms and mel band."""
    data = _picture(path)
    if not budget.spend(len(data) * 4 // 3 + 150):
        return ""
    source = _data_address("image/webp", data)
    return f'<img class="spectrogram" alt="{escape(label)}" src="{source}">'


def _picture(path: Path) -> bytes:
    image = import_package("PIL.Image", "the report")
    waveform = torch.from_numpy(read_audio(path, sample_rate=SAMPLE_RATE))[None]
    mels = log_mel_spectrogram(waveform, _MEL)[0].numpy()  # [M, L]
    # One fixed scale for all, so that pictures side by side can be compared.
    grey = np.clip((mels - np.log(1e-5)) / _FLOOR_RANGE, 0, 1)
    pixels = (255 * grey[::-1]).astype(np.uint8)
    buffer = io.BytesIO()
    image.fromarray(pixels).save(buffer, "WEBP", quality=60)
    return buffer.getvalue()


def _data_address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
