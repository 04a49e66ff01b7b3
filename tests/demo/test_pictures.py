"""Pictures show what they say, over one axis of time; names of visitors are text."""

import base64
import io
import re

import numpy as np
import pytest

from dmcodec.audio import SoundBytes
from dmcodec.demo.pictures import (
    Player,
    show_figures,
    show_message,
    show_pictures,
    show_players,
)
from dmcodec.demo.recordings import Recording, decode, open_recording
from dmcodec.metrics.signal import log_mel

matplotlib = pytest.importorskip("matplotlib", reason="no matplotlib")
images = pytest.importorskip("PIL.Image", reason="no pillow")

IMAGE = re.compile(r'src="data:image/png;base64,([^"]+)" style="width:([\d.]+)%"')


def _read(html: str) -> list[tuple[np.ndarray, float]]:
    """Pixels [H, W, 4] and the width in percent of each picture."""
    found = IMAGE.findall(html)
    pictures = (images.open(io.BytesIO(base64.b64decode(data))) for data, _ in found)
    return [(np.asarray(p), float(w)) for p, (_, w) in zip(pictures, found, strict=True)]


def test_every_picture_covers_its_share_of_one_axis_of_time(recording: Recording) -> None:
    original, decoded, codes = _read(show_pictures(recording, decode(recording, 2)))

    # 8,416 samples: 32 columns of 256 and 27 frames of 320, the last of them reaching beyond
    for picture, width in (original, decoded):
        assert picture.shape == (80, 32, 4)
        assert width == pytest.approx(100 * 32 * 256 / 8_416, abs=1e-3)
    assert codes[0].shape == (3, 27, 4)
    assert codes[1] == pytest.approx(100 * 27 * 320 / 8_416, abs=1e-3)


def test_low_tones_are_at_the_bottom_and_loud_is_bright(recording: Recording) -> None:
    assert recording.original is not None
    (picture, _), *_ = _read(show_pictures(recording, decode(recording, 3)))
    mel = log_mel(recording.original, 16_000)

    brightness = picture[..., :3].sum(axis=-1, dtype=int)
    flat = np.corrcoef(brightness.ravel(), mel[::-1].ravel())[0, 1]

    assert flat > 0.9
    assert np.corrcoef(brightness.ravel(), mel.ravel())[0, 1] < flat


def test_a_colour_of_the_code_map_is_a_code_and_pale_books_are_not_decoded(
    recording: Recording,
) -> None:
    *_, (picture, _) = _read(show_pictures(recording, decode(recording, 2)))
    colours = matplotlib.colormaps["viridis"](np.arange(16) / 15, bytes=True)

    np.testing.assert_array_equal(picture[..., :3], colours[recording.codes.numpy()][..., :3])
    assert picture[..., 3].min(axis=1).tolist() == [255, 255, 40]


def test_codes_alone_have_no_picture_of_an_original(recording: Recording) -> None:
    codes = SoundBytes("a.dmc", recording.dumps(3))
    alone = open_recording(recording.model, codes, max_seconds=10)

    html = show_pictures(alone, decode(alone, 3))

    assert len(_read(html)) == 2
    assert "original" not in html


def test_the_axis_has_round_times_in_their_places(recording: Recording) -> None:
    html = show_pictures(recording, decode(recording, 1))  # 0.526 s

    ticks = re.findall(r'<span style="left:([\d.]+)%">([\d.]+)</span>', html)

    assert [text for _, text in ticks] == ["0", "0.1", "0.2", "0.3", "0.4", "0.5"]
    assert float(ticks[5][0]) == pytest.approx(100 * 0.5 / 0.526, abs=1e-2)


def test_what_visitors_write_is_text() -> None:
    evil = '<script>alert(1)</script>"'

    pages = [
        show_message(evil),
        show_figures({"name": evil}),
        show_players({evil: [Player(evil, 'x" onerror="alert(1)')]}),
    ]

    for page in pages:
        assert "<script" not in page
        assert "&lt;script&gt;" in page
        assert ' onerror="' not in page


def test_no_message_is_no_box() -> None:
    assert show_message("") == ""
