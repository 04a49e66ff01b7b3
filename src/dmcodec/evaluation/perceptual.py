"""Perceptual quality through kept packages: ESTOI, narrow-band PESQ, ViSQOL, DNSMOS, UTMOS.

STOI, wide-band PESQ and log-mel distance are in dmcodec.quality. As there: pure functions on
waveforms, `Unmeasurable` with the reason where the package gives no value. Packages that hold a
model are loaded once per process.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dmcodec.audio import Waveform, resample
from dmcodec.packages import import_package
from dmcodec.quality import Unmeasurable, require_sound, run_pesq, run_stoi

_DNSMOS_RATE = 16_000
_DNSMOS_WINDOW_SAMPLES = 144_160
_VISQOL_RATES = {"speech": 16_000, "audio": 48_000}


def estoi(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """Extended short-time objective intelligibility of two waveforms [T] of equal length.

    Reference: Jensen and Taal 2016, doi:10.1109/TASLP.2016.2585878.
    """
    pystoi = import_package("pystoi", "ESTOI")
    require_sound("ESTOI", reference=reference)
    with _seeded_numpy():  # the package adds noise, which decides where there is silence
        return run_stoi("ESTOI", pystoi.stoi, reference, estimate, sample_rate, extended=True)


@contextmanager
def _seeded_numpy() -> Iterator[None]:
    """Inside, the global generator of numpy begins anew; afterwards it goes on as before."""
    state = np.random.get_state()  # noqa: NPY002 (the package has no other way)
    np.random.seed(0)  # noqa: NPY002, TID251
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def pesq_nb(reference: Waveform, estimate: Waveform, sample_rate: int) -> float:
    """Narrow-band PESQ (MOS-LQO, 1.0 to 4.55) of two waveforms [T] of equal length, at 8 kHz.

    Reference: ITU-T P.862.1 (2003).
    """
    pesq = import_package("pesq", "PESQ-NB")
    return run_pesq(pesq, reference, estimate, sample_rate, "nb")


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
