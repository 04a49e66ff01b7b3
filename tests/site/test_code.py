"""Every code block of the documentation runs, or says why not and names only what there is."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tests.site.blocks import (
    ROOT,
    Block,
    check_block,
    commands_of,
    read_blocks,
    run_block,
    write_program,
)

import dmcodec
from dmcodec.codec.quantizer import QuantizerConfig
from dmcodec.codec.seanet import SEANetConfig

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md"))]
SPEECH = {
    "high": "src/dmcodec/demo/clips/high-voice.flac",
    "low": "src/dmcodec/demo/clips/low-voice.flac",
}
TEXTS = {"high": "Why, it might have been in the workhouse", "low": "He was in deep converse"}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the pages are about: two seconds of two voices in every form, lists of them,
    a causal codec, and what the repository has.
    """
    here = tmp_path / "here"
    for folder in ("recordings", "made/facodec"):
        (here / folder).mkdir(parents=True)
    for name in ("configs", "examples", "src"):
        (here / name).symlink_to(ROOT / name)
    items = []
    for name, path in SPEECH.items():
        speech = dmcodec.read_audio(ROOT / path)[8_000:40_000]
        for target in (f"recordings/{name}.wav", f"made/facodec/{name}.wav"):
            dmcodec.write_audio(here / target, speech)
        items.append({"id": name, "audio": f"recordings/{name}.wav", "speaker": name})
        items[-1]["text"] = TEXTS[name]
    dmcodec.write_audio(here / "speech.wav", speech)
    soundfile.write(here / "talk.mp3", speech, 16_000, format="MP3")
    for name in ("clips", "corpus", "mine", "train", "valid"):
        (here / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    dmcodec.Codec(
        dmcodec.CodecConfig(
            seanet=SEANetConfig(
                num_filters=4,
                latent_dim=8,
                num_lstm_layers=1,
                is_causal=True,
                is_encoder_bidirectional=False,
            ),
            quantizer=QuantizerConfig(codebook_size=64, num_codebooks=4),
        )
    ).save_pretrained(here / "causal")
    write_program(tmp_path / "programs")
    monkeypatch.chdir(here)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    try:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    except ModuleNotFoundError:
        pytest.skip("needs pip install 'dmcodec[data]'")
    return here


def run_page(page: Path, programs: Path) -> dict[str, object]:
    """Runs and checks the blocks of a page in their order; gives the names of its python."""
    names: dict[str, object] = {}
    for block in read_blocks(page):
        if block.is_runnable:
            run_block(block, names, programs)
        else:
            check_block(block)
    return names


@pytest.mark.parametrize("page", [p for p in PAGES if p != README], ids=lambda page: page.stem)
def test_code_of_a_page_runs(page: Path, workplace: Path) -> None:
    run_page(page, workplace.parent / "programs")


def test_code_of_the_readme_runs_and_gives_what_it_says(workplace: Path) -> None:
    names = run_page(README, workplace.parent / "programs")

    encoded, waveform = names["encoded"], names["waveform"]
    assert isinstance(encoded, dmcodec.Encoded)
    assert isinstance(waveform, torch.Tensor)
    assert (encoded.codes.shape, waveform.shape) == ((1, 8, 239), (1, 76480))
    assert len(dmcodec.read_audio("decoded.wav")) == 76480
    np.testing.assert_array_equal(
        dmcodec.loads(Path("codes/talk.dmc").read_bytes()).codes,
        dmcodec.load().encode("talk.mp3").item(0).numpy(),
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_command_hides_in_an_indented_block(page: Path) -> None:
    assert not re.findall(r"\n\n    (?:dmcodec|python|pip) .*", page.read_text(encoding="utf-8"))


PAGE = """
<!-- needs: no-such-program -->
<!-- tests add: --set 'a b' -->
```sh
dmcodec encode x.wav \\
    -o y    # aside
```

<!-- not run: takes long -->
```python
from dmcodec.audio import read_audio
```

```text
not ours
```
"""


def test_comments_say_what_becomes_of_a_block(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)

    shell, python = read_blocks(page)

    assert commands_of(shell) == [["dmcodec", "encode", "x.wav", "-o", "y", "--set", "a b"]]
    assert (shell.place, shell.is_run, shell.is_runnable) == ("page.md, line 4", True, False)
    assert (python.language, python.is_run) == ("python", False)


@pytest.mark.parametrize(
    "line",
    [
        "dmcodec encode x.wav --no-such-flag",
        "dmcodec encoed x.wav",
        "dmcodec train configs/small.toml --set optimizer.learnin_rate=1",
        "cat a | dmcodec decode - --search-width 2 > b",
        "python benchmarks/peers.py --no-such-flag",
        "python benchmarks/no_such.py",
        "pip install 'dmcodec[nosuch]'",
        "make nosuch",
        "torchrun --standalone -m dmcodec.cli train configs/no_such.toml",
    ],
)
def test_what_is_not_there_is_found_without_running(line: str) -> None:
    with pytest.raises(BaseException, match=r"(?i)no |nosuch|unknown key"):  # click has its own
        check_block(Block("sh", line + "\n", "page", False, (), ()))


def test_an_import_that_is_not_there_is_found_without_running() -> None:
    with pytest.raises(AssertionError, match="no_such"):
        check_block(Block("python", "from dmcodec.audio import no_such\n", "p", False, (), ()))
