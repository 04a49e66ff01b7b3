"""The tiny models that the teachers' tests have."""

from tests.teachers.conftest import language_model, speech_model, transformers, whisper_model

__all__ = ["language_model", "speech_model", "transformers", "whisper_model"]
