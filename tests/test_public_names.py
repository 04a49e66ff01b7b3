"""What `import dmcodec` gives, and what it costs."""

import subprocess
import sys

import pytest

import dmcodec


def test_public_names_are_these() -> None:
    assert dmcodec.__all__ == [
        "AudioError",
        "BitstreamError",
        "Card",
        "Codec",
        "CodecConfig",
        "Encoded",
        "Header",
        "__version__",
        "dumps",
        "load",
        "load_published",
        "loads",
        "read_audio",
        "resample",
        "write_audio",
    ]


def test_every_public_name_resolves() -> None:
    assert all(getattr(dmcodec, name) is not None for name in dmcodec.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = dmcodec.nothing_of_the_kind


def _modules_after(code: str) -> set[str]:
    command = f"import sys\n{code}\nprint('|'.join(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    return set(result.stdout.splitlines()[-1].split("|"))


def test_importing_the_package_and_asking_for_help_load_no_torch() -> None:
    code = "import dmcodec\nfrom typer.testing import CliRunner\nfrom dmcodec.cli import app\n"
    code += "assert CliRunner().invoke(app, ['--help']).exit_code == 0"
    loaded = _modules_after(code)
    assert "dmcodec.cli" in loaded
    assert not {"torch", "numpy", "soundfile", "huggingface_hub"} & loaded


def test_code_files_are_read_without_torch() -> None:
    loaded = _modules_after("import dmcodec\ndmcodec.loads")
    assert "dmcodec.tokens.bitstream" in loaded
    assert "torch" not in loaded
