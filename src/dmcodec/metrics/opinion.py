"""What listeners would say: PESQ, ViSQOL, DNSMOS and UTMOS through kept packages.

Pure functions on waveforms; `Unmeasurable` with the reason where the package gives no value, which
never becomes a score. Packages that hold a model are loaded once per process.
"""

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dmcodec.audio import SAMPLE_RATE, Waveform, resample
from dmcodec.metrics.measure import (
    Group,
    Measure,
    ModelChoice,
    Original,
    Outcomes,
    ScoringConfig,
    Unmeasurable,
    attempt,
    check_pair,
    require_sound,
)
from dmcodec.packages import import_package

_DNSMOS_RATE = 16_000
_DNSMOS_WINDOW_SAMPLES = 144_160
_VISQOL_RATES = {"speech": 16_000, "audio": 48_000}


def pesq_wb(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """Wide-band PESQ, 1.04 to 4.64, of two waveforms [T] of equal length; computed at 16 kHz.

    Needs 0.25 s, and speech in both. Reference: ITU-T P.862.2 (2007).
    """
    check_pair(reference, estimate)
    return _run_pesq(reference, estimate, sample_rate, "wb")


def pesq_nb(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """Narrow-band PESQ (MOS-LQO, 1.0 to 4.55) of two waveforms [T] of equal length, at 8 kHz.

    Reference: ITU-T P.862.1 (2003).
    """
    return _run_pesq(reference, estimate, sample_rate, "nb")


def _run_pesq(reference: Waveform, estimate: Waveform, sample_rate: int, mode: str) -> float:
    """What the package pesq gives of waveforms at any rate; Unmeasurable where it gives nothing.

    Modes are its own: "wb" at 16 kHz, "nb" at 8 kHz.
    """
    package = import_package("pesq", "PESQ")
    # The package divides by the level of the estimate, and raises that of the reference.
    require_sound("PESQ", reference=reference, estimate=estimate)
    rate = {"wb": 16_000, "nb": 8_000}[mode]
    reference, estimate = (resample(each, sample_rate, rate) for each in (reference, estimate))
    try:
        return float(package.pesq(rate, reference, estimate, mode))
    except package.BufferTooShortError as problem:
        raise Unmeasurable("PESQ: shorter than the 0.25 s that it needs") from problem
    except package.NoUtterancesError as problem:
        raise Unmeasurable("PESQ: no speech found in the reference or in the estimate") from problem
    except (package.PesqError, ValueError) as problem:
        reason = problem.args[0] if problem.args else problem
        text = reason.decode() if isinstance(reason, bytes) else str(reason)
        raise Unmeasurable(f"PESQ: the package gave no value: {text}") from problem


def visqol(reference: Waveform, estimate: Waveform, sample_rate: int, mode: str) -> float:
    """ViSQOL v3, 1 to 5, of two waveforms [T] of equal length; it aligns level and time itself.

    Args:
        reference: the original.
        estimate: what came out of the codec.
        sample_rate: of both, Hz.
        mode: "speech" compares at 16 kHz and maps with the deep lattice (never with the polynomial
            that the package falls back to, which scores 0.8 to 2.0 higher); "audio" compares at
            48 kHz and maps with support vectors.

    Reference: Chinen et al. 2020, arXiv:2004.09584.
    """
    rate = _VISQOL_RATES[mode]
    # The package divides by the level of the estimate, and compares silence with its own noise.
    require_sound("ViSQOL", reference=reference, estimate=estimate)
    api = _visqol_api(mode)
    signals = [resample(w, sample_rate, rate).astype(np.float64) for w in (reference, estimate)]
    try:
        return float(api.measure_from_arrays(*signals, rate).moslqo)
    except (ValueError, RuntimeError, IndexError, ZeroDivisionError) as problem:
        raise Unmeasurable(f"ViSQOL: {problem}") from problem


@lru_cache(maxsize=2)
def _visqol_api(mode: str) -> Any:
    package = import_package("visqol", "ViSQOL")
    if mode == "speech":
        import_package("ai_edge_litert", "the lattice mapper of ViSQOL")
    logging.getLogger("visqol").setLevel(logging.WARNING)  # it reports every comparison
    api = package.VisqolApi()
    if mode == "speech":
        api.create(mode=mode, use_lattice_model=True)
    else:
        api.create(mode=mode)
    return api


def dnsmos(waveform: Waveform, sample_rate: int) -> dict[str, float]:
    """`dnsmos_overall` and `dnsmos_p808` of one waveform [T], at 16 kHz.

    Clips over 9.01 s are scored in windows that move by a second, as the package does. Shorter
    ones are repeated until they fill one window, and scored once: the package repeats them up to
    18 s and takes the mean of up to nine windows with the same speech in each. That takes four
    times as long for scores that differ by 0.03 from these, and means by 0.01 (48 clips of 2 to
    9 s). Samples beyond full scale are clipped.

    Reference: Reddy et al. 2022, arXiv:2110.01763; Reddy et al. 2021, arXiv:2010.15258.
    """
    scorer = _dnsmos_scorer()
    signal = np.clip(resample(waveform, sample_rate, _DNSMOS_RATE), -1, 1)
    if not np.any(signal):
        raise Unmeasurable("DNSMOS: the signal is silent")  # its network was trained on speech
    if len(signal) < _DNSMOS_WINDOW_SAMPLES:
        signal = np.resize(signal, _DNSMOS_WINDOW_SAMPLES)  # repeats it
    scores = scorer(signal, _DNSMOS_RATE, is_personalized_MOS=False)
    return {
        "dnsmos_overall": float(scores["ovrl_mos"]),
        "dnsmos_p808": float(scores["p808_mos"]),
    }


@lru_cache(maxsize=1)
def _dnsmos_scorer() -> Any:
    """The package's scorer with sessions of one thread: processes are the parallelism here."""
    runtime = import_package("onnxruntime", "DNSMOS")
    package = import_package("speechmos.dnsmos", "DNSMOS")
    folder = Path(package.__file__).parent / "dnsmos_models"
    primary, p808 = str(folder / "sig_bak_ovr.onnx"), str(folder / "model_v8.onnx")
    scorer = package.DNSMOS(primary, p808)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    scorer.onnx_sess = runtime.InferenceSession(primary, options)
    scorer.p808_onnx_sess = runtime.InferenceSession(p808, options)
    return scorer


def utmos(waveform: Waveform, sample_rate: int, model_path: Path | None) -> float:
    """UTMOS of one waveform [T] by a TorchScript file that maps ([1, T], rate) to a score [1].

    No package carries the weights; without a file the measure is missing.
    Reference: Saeki et al. 2022, arXiv:2204.02152.
    """
    if model_path is None:
        raise Unmeasurable("UTMOS: no weights at hand; name a TorchScript file")
    with torch.inference_mode():
        score = _load_script(model_path)(torch.from_numpy(waveform)[None], sample_rate)
    return float(score.reshape(-1)[0])


@lru_cache(maxsize=1)
def _load_script(path: Path) -> torch.jit.ScriptModule:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; UTMOS needs a TorchScript file")
    model: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
        str(path), map_location="cpu"
    )
    return model.eval()


def _compute_pesq(original: Original, estimate: Waveform) -> Outcomes:
    pair = (original.waveform, estimate, SAMPLE_RATE)
    return {"pesq": attempt(pesq_wb, *pair), "pesq_nb": attempt(pesq_nb, *pair)}


def _compute_visqol(original: Original, estimate: Waveform) -> Outcomes:
    return {"visqol": attempt(visqol, original.waveform, estimate, SAMPLE_RATE, "speech")}


def _compute_visqol_audio(original: Original, estimate: Waveform) -> Outcomes:
    return {"visqol_audio": attempt(visqol, original.waveform, estimate, SAMPLE_RATE, "audio")}


def _compute_dnsmos(original: Original, estimate: Waveform) -> Outcomes:
    try:
        return dict(dnsmos(estimate, SAMPLE_RATE))
    except Unmeasurable as reason:
        return dict.fromkeys(DNSMOS.names, reason)


def _compute_utmos(original: Original, estimate: Waveform) -> Outcomes:
    return {"utmos": attempt(utmos, estimate, SAMPLE_RATE, original.config.utmos)}


def _lacks_utmos(config: ScoringConfig) -> str | None:
    if config.utmos is not None:
        return None
    return "UTMOS: no weights at hand; name a TorchScript file with --set scoring.utmos=FILE"


VISQOL = Group(
    "visqol",
    (
        Measure(
            "visqol", "ViSQOL", "higher", 2, "ViSQOL v3, speech mode at 16 kHz, lattice mapper",
            is_main=True, has_chart=True, silent_score=1.0,
        ),
    ),
    _compute_visqol,
    modules=("visqol", "ai_edge_litert"),
    distributions=("visqol-python", "ai-edge-litert"),
)  # fmt: skip
VISQOL_AUDIO = Group(
    "visqol_audio",
    (
        Measure(
            "visqol_audio", "ViSQOL audio", "higher", 2, "ViSQOL v3, audio mode at 48 kHz",
            silent_score=1.0,
        ),
    ),
    _compute_visqol_audio,
    modules=("visqol",),
    distributions=("visqol-python",),
)  # fmt: skip
PESQ = Group(
    "pesq",
    (
        Measure(
            "pesq", "PESQ-WB", "higher", 2, "wide-band PESQ, ITU-T P.862.2",
            is_main=True, has_chart=True, silent_score=1.0,
        ),
        Measure(
            "pesq_nb", "PESQ-NB", "higher", 2, "narrow-band PESQ, ITU-T P.862.1, at 8 kHz",
            silent_score=1.0,
        ),
    ),
    _compute_pesq,
    modules=("pesq",),
    distributions=("pesq",),
)  # fmt: skip
DNSMOS = Group(
    "dnsmos",
    (
        Measure(
            "dnsmos_overall", "DNSMOS", "higher", 2, "DNSMOS P.835 overall, no reference",
            is_main=True, silent_score=1.0,
        ),
        Measure(
            "dnsmos_p808", "DNSMOS P.808", "higher", 2, "DNSMOS P.808, no reference",
            silent_score=1.0,
        ),
    ),
    _compute_dnsmos,
    modules=("speechmos", "librosa", "onnxruntime", "requests"),
    distributions=("speechmos", "librosa", "onnxruntime"),
    uses_original=False,
    is_slow=True,
    revision=2,
)  # fmt: skip
UTMOS = Group(
    "utmos",
    (Measure("utmos", "UTMOS", "higher", 2, "UTMOS, no reference", silent_score=1.0),),
    _compute_utmos,
    model=ModelChoice("UTMOS", lambda config: str(config.utmos), lacks=_lacks_utmos),
    uses_original=False,
)
