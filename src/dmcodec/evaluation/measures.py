"""The list of measures: their names, directions and how clips are pooled. No computation.

Names are VERSA's where VERSA has the measure (arXiv:2412.17667).
"""

from dataclasses import dataclass
from typing import Literal

Pooling = Literal["mean", "errors", "information_lost"]


@dataclass(frozen=True)
class Measure:
    """One column of the tables.

    name: key in rows, CSV and JSON. label: heading for people. better: which way is good; None for
    diagnostics that are neither. scale: factor from the stored value to the shown one (100 for
    percent). pooling: how clips become one figure: the mean of their values; "errors" is all
    errors over all reference words; "information_lost" is WIL of the counts added up.
    meaning: one line for reports.
    """

    name: str
    label: str
    better: Literal["higher", "lower"] | None
    digits: int
    meaning: str
    unit: str = ""
    scale: float = 1.0
    pooling: Pooling = "mean"

    @property
    def heading(self) -> str:
        """Label with unit and an arrow to the good side."""
        unit = f", {self.unit}" if self.unit else ""
        arrow = {"higher": " ↑", "lower": " ↓", None: ""}[self.better]
        return f"{self.label}{unit}{arrow}"

    def show(self, value: float) -> str:
        """A stored value as text."""
        return f"{value * self.scale:.{self.digits}f}"


def _rate(name: str, label: str, meaning: str, pooling: Pooling = "errors") -> Measure:
    return Measure(name, label, "lower", 2, meaning, "%", 100.0, pooling)


_ALL = (
    _rate("wer", "WER", "word errors per word of the transcript"),
    _rate("wil", "WIL", "word information lost against the transcript", "information_lost"),
    _rate("cer", "CER", "character errors per character of the transcript"),
    _rate("wer_own", "WER own", "word errors against the recognizer's words for the original"),
    _rate("cer_own", "CER own", "character errors against the recognizer's text of the original"),
    _rate("content_per", "PER of codes", "phone errors of a small probe that reads the codes"),
    Measure("distillmos", "DistillMOS", "higher", 2, "DistillMOS, no reference"),
    Measure("visqol", "ViSQOL", "higher", 2, "ViSQOL v3, speech mode at 16 kHz, lattice mapper"),
    Measure("visqol_audio", "ViSQOL audio", "higher", 2, "ViSQOL v3, audio mode at 48 kHz"),
    Measure("stoi", "STOI", "higher", 3, "short-time objective intelligibility"),
    Measure("estoi", "ESTOI", "higher", 3, "extended STOI"),
    Measure("pesq", "PESQ-WB", "higher", 2, "wide-band PESQ, ITU-T P.862.2"),
    Measure("pesq_nb", "PESQ-NB", "higher", 2, "narrow-band PESQ, ITU-T P.862.1, at 8 kHz"),
    Measure("dnsmos_overall", "DNSMOS", "higher", 2, "DNSMOS P.835 overall, no reference"),
    Measure("dnsmos_p808", "DNSMOS P.808", "higher", 2, "DNSMOS P.808, no reference"),
    Measure("utmos", "UTMOS", "higher", 2, "UTMOS, no reference"),
    Measure("spk_similarity", "Speaker sim.", "higher", 3, "cosine of speaker embeddings"),
    Measure("mel_distance", "Mel dist.", "lower", 3, "mean |difference| of 80 log mel bands"),
    Measure("stft_distance", "STFT dist.", "lower", 3, "multi-resolution log-magnitude distance"),
    Measure("mcd", "MCD", "lower", 2, "mel-cepstral distortion, frame by frame", "dB"),
    Measure("si_sdr", "SI-SDR", "higher", 2, "scale-invariant signal-to-distortion ratio", "dB"),
    Measure("f0_corr", "F0 corr.", "higher", 3, "correlation of F0 where both are voiced"),
    Measure("f0_rmse", "F0 RMSE", "lower", 1, "error of F0 where both are voiced", "Hz"),
    _rate("voicing_error", "Voicing err.", "frames voiced in one signal only", "mean"),
    Measure("level_difference", "Level diff.", None, 2, "level of the estimate less the level of"
            " the original", "dB"),
    Measure("delay", "Delay", None, 1, "lag of the largest cross-correlation", "ms"),
)  # fmt: skip
MEASURES = {measure.name: measure for measure in _ALL}
"""Every measure by name, in the order of the tables."""
