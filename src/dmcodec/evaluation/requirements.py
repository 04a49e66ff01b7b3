"""Packages and programs that only some measures and systems need, and how to install them."""

import shutil
from hashlib import blake2b
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dmcodec.quality import Unmeasurable

_INSTALL = {
    "resemblyzer": "pip install webrtcvad-wheels && pip install --no-deps Resemblyzer",
    "distillmos": "pip install --no-deps distillmos xls-r-sqa",
    "xls_r_sqa": "pip install --no-deps distillmos xls-r-sqa",
    "transformers": "pip install transformers",
    "PIL": "pip install pillow",
    "torchaudio": "install the torchaudio build that belongs to your torch",
}


class MissingPackage(Unmeasurable):
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


def check_model(name: str) -> None:
    """Raises FileNotFoundError unless a Hugging Face model is in a folder, cached or to be had."""
    transformers = import_package("transformers", f"the model {name}")
    try:
        transformers.AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"model {name!r} is neither the folder of a model nor in the Hub's cache, and could not"
            " be fetched; where there is a network: hf download NAME --local-dir FOLDER"
        ) from error


def model_identity(name: str) -> str:
    """What names a Hugging Face model: a folder's name and a hash of its files, or its Hub name.

    The hash is of names, sizes and times of change: enough to notice other weights.
    """
    version_text = package_versions(("transformers",)).get("transformers", "not installed")
    folder = Path(name)
    if not folder.is_dir():
        return f"{name} (transformers {version_text})"
    digest = blake2b(digest_size=4)
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    return f"{folder.name} [{digest.hexdigest()}] (transformers {version_text})"


def _message(name: str, purpose: str) -> str:
    command = _INSTALL.get(name.split(".")[0], "pip install 'dmcodec[eval]'")
    return f"{purpose} needs the package {name}: {command}"


def package_versions(distributions: tuple[str, ...]) -> dict[str, str]:
    """Versions of those distributions that are installed."""
    found = {}
    for name in distributions:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
