"""Which codecs a visitor may choose."""

from pathlib import Path

import pytest
import torch

from dmcodec.demo.models import Model, Models, Refused


def test_a_folder_is_loaded_once(model: Model, model_folder: Path) -> None:
    models = Models([str(model_folder)], is_open=False)

    loaded = models.get(None)

    assert loaded.engine.model_hash == model.engine.model_hash
    assert models.get(f" {model_folder} ") is loaded
    assert loaded.describe() == "3 books of 16 codes, 50 frames a second, 0.6 kbps at 16 kHz"


def test_strangers_choose_from_the_list_only(model_folder: Path) -> None:
    with pytest.raises(Refused, match="not among the models of this page: dmcodec-small"):
        Models(is_open=False).get(str(model_folder))


def test_at_home_other_models_can_be_named(model: Model, model_folder: Path) -> None:
    loaded = Models(is_open=True).get(str(model_folder))

    assert torch.equal(loaded.codec.quantizer.codebooks, model.codec.quantizer.codebooks)


def test_a_model_that_cannot_be_loaded_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"cannot be loaded: .*config\.json is missing"):
        Models(is_open=True).get(str(tmp_path))


def test_the_bundled_model_is_the_first_choice() -> None:
    assert Models(is_open=False).names == ["dmcodec-small"]
