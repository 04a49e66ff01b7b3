"""The card of a codec folder, and the way of both to the Hub and back, over HTTP."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import yaml
from tests.codec.hub import Hub

from dmcodec import Card, read_audio

EXAMPLE = Path(__file__).parents[2] / "examples" / "4077-13754-0000.flac"


@pytest.fixture
def card() -> Card:
    return Card(
        title="Parrot",
        text="It repeats.",
        license="cc-by-4.0",
        samples={"A man, reading": np.sin(np.arange(4000, dtype=np.float32) / 9) / 2},
        books=(2, 1),
        figures={"STOI": 0.91, "PESQ-WB": 2.25},
        measured_on="nine clips",
    )


def test_card_has_players_of_files_that_are_there(codec, card, tmp_path):
    codec.save_pretrained(tmp_path / "parrot", card=card)

    text = (tmp_path / "parrot" / "README.md").read_text()
    files = [f"sample-a-man-reading-{what}.flac" for what in ("original", "2-books", "1-books")]
    places = [text.index(f'<audio controls src="{file}"></audio>') for file in files]
    assert places == sorted(places)
    assert 'Codec.from_pretrained("parrot")' in text
    original, both, first = (read_audio(tmp_path / "parrot" / file) for file in files)
    np.testing.assert_allclose(original, card.samples["A man, reading"], atol=2**-15)
    encoded = codec.encode(card.samples["A man, reading"])
    for found, books in ((both, 2), (first, 1)):
        expected = codec.decode(encoded, num_codebooks=books)[0].numpy()
        np.testing.assert_allclose(found, np.clip(expected, -1, 1), atol=2**-15)


def test_card_tells_the_hub_what_it_indexes(codec, card, tmp_path):
    codec.save_pretrained(tmp_path, card=card)

    _, head, body = (tmp_path / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(head)
    (result,) = metadata["model-index"][0]["results"]
    assert (metadata["library_name"], metadata["license"]) == ("dmcodec", "cc-by-4.0")
    assert metadata["language"] == ["en"]
    assert {each["name"]: each["value"] for each in result["metrics"]} == card.figures
    assert result["dataset"]["name"] == "nine clips"
    assert "| PESQ-WB | 2.25 |" in body
    assert codec.fingerprint() in body


def test_without_a_card_an_existing_one_stays_and_else_a_short_one_is_written(codec, tmp_path):
    codec.save_pretrained(tmp_path)
    written = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("mine")
    codec.save_pretrained(tmp_path)

    assert "library_name: dmcodec" in written
    assert "16000 Hz" in written
    assert (tmp_path / "README.md").read_text() == "mine"


def test_figures_of_nothing_and_samples_of_one_name_are_refused():
    with pytest.raises(ValueError, match="measured_on"):
        Card(title="x", figures={"STOI": 1.0})
    with pytest.raises(ValueError, match=r"too alike: a b, a-b"):
        Card(title="x", samples={"a b": EXAMPLE, "a-b": EXAMPLE})


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def run_with_hub(hub: Hub, home: Path, program: str, *arguments: str) -> str:
    """What a program prints whose Hub is the stand-in, and whose caches are empty."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_secret",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


PUSH = """
import sys
from dmcodec import Card, Codec
codec = Codec.from_pretrained(sys.argv[1])
card = Card(title="Parrot", samples={"one": sys.argv[2]})
print(codec.push_to_hub("someone/parrot", private=True, card=card))
"""

PULL = """
import json
from dmcodec import Codec
codec = Codec.from_pretrained("someone/parrot")
print(json.dumps([codec.model_id, codec.fingerprint()]))
"""


def test_codec_goes_to_the_hub_and_comes_back(codec, hub, tmp_path):
    codec.save_pretrained(tmp_path / "codec")

    address = run_with_hub(hub, tmp_path / "here", PUSH, str(tmp_path / "codec"), str(EXAMPLE))
    found = run_with_hub(hub, tmp_path / "there", PULL)

    assert address == f"{hub.address}/someone/parrot"
    assert hub.private == {"someone/parrot": True}
    uploaded = hub.files["someone/parrot"]
    assert sorted(uploaded) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "sample-one-4-books.flac",
        "sample-one-original.flac",
    ]
    text = uploaded["README.md"].decode()
    place = f"{hub.address}/someone/parrot/resolve/main/sample-one-4-books.flac"
    assert f'src="{place}"' in text
    assert 'from_pretrained("someone/parrot")' in text
    assert json.loads(found) == ["someone/parrot", codec.fingerprint()]
