import sys
from types import ModuleType

import pytest
import torch

from dmcodec.metrics.distillmos import WINDOW_SAMPLES, distillmos, import_distillmos
from dmcodec.packages import MissingPackage

pytest.importorskip("xls_r_sqa")


@pytest.fixture(name="waveform")
def _waveform(speech) -> torch.Tensor:
    """[1, T] of 4.8 s of speech."""
    return torch.from_numpy(speech)[None]


def test_original_speech_is_good_and_what_four_bits_leave_of_it_is_poor(waveform):
    coarse = torch.round(waveform * 8) / 8
    good, poor = distillmos(torch.cat([waveform, coarse])).tolist()
    assert good > 3.5  # 3.9: LibriSpeech, mostly 4.1 to 4.7
    assert poor < 2.5


def test_scores_are_those_of_the_package_for_short_and_long_recordings(waveform, capsys):
    network = import_distillmos().ConvTransformerSQAModel().eval()
    long = torch.cat([waveform, 0.3 * waveform.flip(1), waveform], dim=1)
    for clip in (waveform[:, :4_000], waveform, long[:, : WINDOW_SAMPLES + 20_001]):
        with torch.no_grad():
            expected = network(clip)[:, 0]
        torch.testing.assert_close(distillmos(clip), expected, rtol=0, atol=1e-4)
    capsys.readouterr()  # the package prints


def test_neither_batch_nor_padding_changes_a_score(waveform):
    num_samples = waveform.shape[1]
    lengths = [num_samples, 20_000, 48_000]
    batch = torch.randn(3, WINDOW_SAMPLES + 50_000)
    for row, length in zip(batch, lengths, strict=True):
        row[:length] = waveform[0, :length]
    alone = torch.cat([distillmos(waveform[:, :length]) for length in lengths])
    torch.testing.assert_close(distillmos(batch, lengths), alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "lengths"), [((16_000,), None), ((1, 0), None), ((2, 9), [9]), ((1, 9), [10])]
)
def test_wrong_shapes_and_lengths_are_refused(shape, lengths):
    with pytest.raises(ValueError, match="DistillMOS"):
        distillmos(torch.zeros(shape), lengths)


def test_import_leaves_no_stand_in_and_no_trace_in_the_random_generator(monkeypatch):
    state = torch.get_rng_state()
    monkeypatch.delitem(sys.modules, "torchaudio", raising=False)
    import_distillmos()
    distillmos(torch.zeros(1, 9))
    assert "torchaudio" not in sys.modules
    assert torch.equal(torch.get_rng_state(), state)


def test_a_torchaudio_that_is_loaded_already_stays(monkeypatch):
    mine = ModuleType("torchaudio")
    monkeypatch.setitem(sys.modules, "torchaudio", mine)
    import_distillmos()
    assert sys.modules["torchaudio"] is mine


def test_missing_package_is_named_with_its_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "distillmos", None)
    with pytest.raises(MissingPackage, match="pip install --no-deps distillmos xls-r-sqa"):
        import_distillmos()
