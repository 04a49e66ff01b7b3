import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dmcodec.audio import write_audio
from dmcodec.codec.conv import add_weight_norm
from dmcodec.codec.model import Codec, CodecConfig
from dmcodec.codec.network import CodecOutput
from dmcodec.codec.quantizer import QuantizerConfig
from dmcodec.codec.seanet import SEANetConfig
from dmcodec.corpus.manifest import read_manifest
from dmcodec.data.dataset import DataConfig, SegmentDataset
from dmcodec.data.loader import SegmentBatch, ValidationClip, make_train_loader
from dmcodec.losses.distillation import dimension_cosine_loss, frame_cosine_loss
from dmcodec.teachers.alignment import FeatureTrack, Word
from dmcodec.teachers.extract import CodecFrames, teacher_settings
from dmcodec.teachers.speech import SpeechTeacherConfig
from dmcodec.teachers.store import (
    StoredUtterance,
    StoreError,
    StoreInfo,
    create_store,
    write_shard,
)
from dmcodec.teachers.text import TextTeacherConfig
from dmcodec.training.checkpoint import initialize_from, load_experiment, save_checkpoint
from dmcodec.training.distillation import CharacterGuide, DistillationConfig, SpeechGuide, TextGuide
from dmcodec.training.experiment import Experiment, LossConfig
from dmcodec.training.guidance import Guidance, character_loss, make_heads, mean_of_books
from dmcodec.training.state import new_state

FRAMES = CodecFrames(sample_rate=16_000, hop_length=320)
SEGMENT = 4_800
NUM_CLIPS = 8
WORDS = [Word("hi", 0, 2_000), Word("there", 2_200, 4_800)]
TEXT_TEACHER = TextTeacherConfig(
    language_model="none/bert", stt={"kind": "ctc", "model": "none/ctc", "use_transcripts": True}
)
SPEECH_TEACHER = SpeechTeacherConfig(model="none/hubert")
CODEC = CodecConfig(
    seanet=SEANetConfig(num_filters=2, latent_dim=16, num_lstm_layers=1),
    quantizer=QuantizerConfig(num_codebooks=4, codebook_size=32),
    feature_dim=6,
)


def make_store(folder: Path, settings: dict, seed: int, width: int = 6) -> Path:
    """A few different vectors an utterance, as words have, with silence between."""
    info = StoreInfo(settings, {"model": "made up"}, width)
    create_store(folder, info)
    rng = np.random.default_rng(seed)
    items = []
    for number in range(NUM_CLIPS):
        rows = rng.normal(size=(3, width)).astype(np.float32)
        frame_rows = np.repeat(np.array([0, 1, -1, 2, 2], dtype=np.int32), 3)
        items.append(StoredUtterance(f"u{number}", FeatureTrack(rows, frame_rows), WORDS))
    write_shard(folder, 0, info, items)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    lines = []
    for number in range(NUM_CLIPS):
        time = np.arange(SEGMENT) / 16_000
        tone = np.sin(2 * np.pi * (200 + 90 * number) * time * (1 + time))
        noise = np.random.default_rng(number).normal(0, 0.02, SEGMENT)
        write_audio(folder / f"u{number}.wav", (0.3 * tone + noise).astype(np.float32))
        lines.append(json.dumps({"id": f"u{number}", "audio": f"u{number}.wav"}))
    (folder / "all.jsonl").write_text("\n".join(lines) + "\n")
    make_store(folder / "text", teacher_settings(TEXT_TEACHER, FRAMES), seed=1)
    make_store(folder / "speech", teacher_settings(SPEECH_TEACHER, FRAMES), seed=2)
    make_store(folder / "wide", teacher_settings(SPEECH_TEACHER, FRAMES), seed=3, width=5)
    return folder


def text_guide(corpus: Path, **changes) -> TextGuide:
    return TextGuide(teacher=TEXT_TEACHER, store=corpus / "text", **changes)


def speech_guide(corpus: Path, store: str = "speech", **changes) -> SpeechGuide:
    return SpeechGuide(teacher=SPEECH_TEACHER, store=corpus / store, **changes)


def make_batch(corpus: Path, guidance: Guidance, size: int = NUM_CLIPS) -> SegmentBatch:
    manifest = corpus / "all.jsonl"
    config = DataConfig(
        train_manifests=(manifest,), segment_samples=SEGMENT, gain_db=(0, 0), use_preload=True
    )
    dataset = SegmentDataset(read_manifest(manifest), config, seed=0, stores=guidance.stores)
    return next(iter(make_train_loader(dataset, global_batch_size=size)))


def make_codec(config: CodecConfig = CODEC) -> Codec:
    codec = Codec(config)
    add_weight_norm(codec)
    return codec


def test_rvq_1_to_8_is_the_mean_of_the_eight_outputs():
    outputs = tuple(torch.randn(2, 3, 5) for _ in range(8))

    mean = mean_of_books(outputs, range(1, 9))

    torch.testing.assert_close(mean, sum(outputs) / 8)
    assert mean_of_books(outputs, [1]).equal(outputs[0])
    assert mean_of_books(outputs, [8]).equal(outputs[7])


def test_more_books_do_not_strengthen_the_gradient():
    latents = torch.randn(2, 3, 5, requires_grad=True)
    outputs = [latents - (0.5 * latents).detach() for _ in range(8)]  # straight through, all alike

    (gradient,) = torch.autograd.grad(8 * mean_of_books(outputs, range(1, 9)).sum(), latents)

    torch.testing.assert_close(gradient, torch.ones_like(latents))  # as their sum, `quantized`


def test_terms_are_equation_3_on_the_chosen_books_through_one_map(corpus):
    config = DistillationConfig(
        text=text_guide(corpus, books=(1,), weight=0.8),
        speech=speech_guide(corpus, books=(1, 2, 3, 4), weight=0.2, loss="frame_cosine"),
    )
    guidance = Guidance(config, CODEC)
    batch, codec = make_batch(corpus, guidance), make_codec()
    output = codec(batch.waveform, batch.num_samples)

    loss, terms = guidance.terms(0, codec, None, batch, output)

    first, *others = (each.transpose(1, 2) for each in output.quantizer.book_outputs)
    mean = (first + sum(others)) / 4
    text, speech = batch.guidance.text, batch.guidance.speech
    by_hand = [
        dimension_cosine_loss(codec.feature_map(first), text.values, text.mask),
        frame_cosine_loss(codec.feature_map(mean), speech.values, speech.mask),
    ]
    torch.testing.assert_close(terms["distill_text"], by_hand[0])
    torch.testing.assert_close(terms["distill_speech"], by_hand[1])
    torch.testing.assert_close(terms["distillation"], 0.8 * by_hand[0] + 0.2 * by_hand[1])
    torch.testing.assert_close(loss, 120 * terms["distillation"])


def test_shuffled_features_of_a_batch_change_the_loss(corpus):
    guidance = Guidance(DistillationConfig(text=text_guide(corpus)), CODEC)
    batch, codec = make_batch(corpus, guidance), make_codec()
    output = codec(batch.waveform, batch.num_samples)
    text = batch.guidance.text
    rolled = batch.guidance._replace(text=text._replace(values=text.values.roll(1, dims=1)))

    loss = guidance.terms(0, codec, None, batch, output).loss
    other = guidance.terms(0, codec, None, batch._replace(guidance=rolled), output).loss

    assert (loss - other).abs() > 0.01


def test_overfitting_eight_clips_brings_the_loss_near_its_floor(corpus):
    network = SEANetConfig(num_filters=4, latent_dim=32, num_lstm_layers=1)
    books = QuantizerConfig(num_codebooks=1, codebook_size=128, ema_decay=0.8)
    config = CodecConfig(seanet=network, quantizer=books, feature_dim=6)
    guidance = Guidance(DistillationConfig(text=text_guide(corpus, weight=1.0)), config)
    batch, codec = make_batch(corpus, guidance), make_codec(config)
    optimizer = torch.optim.Adam(codec.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        quantized = codec.quantizer(codec.encoder(batch.waveform), update=True)
        output = CodecOutput(batch.waveform, quantized)  # the decoder has no part in this loss
        loss = guidance.terms(0, codec, None, batch, output).terms["distillation"]
        (loss + 0.1 * quantized.commitment_loss).backward()
        optimizer.step()
        losses.append(loss.item())

    floor = math.log(1 + math.exp(-1))
    assert losses[0] > 0.6
    assert floor < losses[-1] < floor + 0.02


def test_guide_acts_from_its_start_step_and_every_weight_takes_part_before(corpus):
    config = DistillationConfig(text=text_guide(corpus, start_step=5, weight=1.0))
    guidance = Guidance(config, CODEC)
    batch, codec = make_batch(corpus, guidance), make_codec()

    before = guidance.terms(4, codec, None, batch, codec(batch.waveform, batch.num_samples)).loss
    before.backward()
    zero = codec.feature_map.weight.grad.abs().sum()
    after = guidance.terms(5, codec, None, batch, codec(batch.waveform, batch.num_samples)).loss

    assert before == 0
    assert zero == 0
    assert after > 120 * 0.3


def test_speech_model_of_another_width_gets_a_map_of_its_own(corpus):
    config = DistillationConfig(
        text=text_guide(corpus), speech=speech_guide(corpus, "wide", own_map_dim=5)
    )
    guidance, codec = Guidance(config, CODEC), make_codec()
    heads = make_heads(config, 16)
    batch = make_batch(corpus, guidance)

    output = codec(batch.waveform, batch.num_samples)
    guidance.terms(0, codec, heads, batch, output).loss.backward()

    assert heads.layers["speech"].weight.grad.abs().sum() > 0
    assert codec.feature_map.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="have width 5, the linear map gives 6"):
        Guidance(DistillationConfig(speech=speech_guide(corpus, "wide")), CODEC)


def test_store_of_other_settings_is_refused(corpus):
    other = TEXT_TEACHER.model_copy(update={"layers": "last"})
    guide = TextGuide(teacher=other, store=corpus / "text")
    with pytest.raises(StoreError, match="layers: 'mean' there, 'last' here"):
        Guidance(DistillationConfig(text=guide), CODEC)
    with pytest.raises(StoreError, match="other settings"):
        Guidance(DistillationConfig(speech=speech_guide(corpus, "text")), CODEC)


def test_validation_scores_the_clips_that_a_store_knows(corpus):
    guidance = Guidance(DistillationConfig(text=text_guide(corpus)), CODEC)
    batch, codec = make_batch(corpus, guidance, size=1), make_codec().eval()
    utterances = read_manifest(corpus / "all.jsonl")
    utterance = utterances[int(batch.utterance_index)]

    scores = guidance.validate(codec, None, ValidationClip(batch.waveform, 0, utterance))
    unknown = utterance.model_copy(update={"id": "unknown"})

    terms = guidance.terms(0, codec, None, batch, codec(batch.waveform)).terms
    assert scores["loss_distill_text"] == pytest.approx(terms["distill_text"].item(), abs=1e-5)
    assert guidance.validate(codec, None, ValidationClip(batch.waveform, 0, unknown)) == {}


def test_character_loss_is_ctc_per_character_over_the_frames_of_whole_words(corpus):
    config = CharacterGuide(store=corpus / "text")
    logits = torch.randn(3, 15, 29).requires_grad_()
    words = [WORDS, [], [Word("A!", 640, 1_280)]]

    loss = character_loss(config, logits, words, FRAMES)
    loss.backward()

    log_probs = logits.detach().log_softmax(dim=-1)
    alphabet = " abcdefghijklmnopqrstuvwxyz'"
    expected = []
    for item, first, stop, text in ((0, 0, 15, "hi there"), (2, 2, 4, "a")):
        target = torch.tensor([[alphabet.index(c) + 1 for c in text]])
        inputs = log_probs[item, first:stop, None]
        one = F.ctc_loss(inputs, target, [stop - first], [len(text)], reduction="sum")
        expected.append(one / len(text))
    torch.testing.assert_close(loss.detach(), torch.stack(expected).mean())
    used = logits.grad.abs().sum(dim=2) > 0
    assert used[0].all()
    assert not used[1].any()
    assert used[2].nonzero()[:, 0].tolist() == [2, 3]


def test_segments_without_words_have_no_character_loss(corpus):
    logits = torch.randn(2, 15, 29).requires_grad_()

    loss = character_loss(CharacterGuide(store=corpus / "text"), logits, [[], []], FRAMES)
    loss.backward()

    assert loss == 0
    assert (logits.grad == 0).all()


def make_experiment(corpus: Path, **changes) -> Experiment:
    settings = {
        "num_steps": 4,
        "batch_size": 4,
        "checkpoint_every_steps": 2,
        "log_every_steps": 2,
        "codec": CODEC,
        "data": DataConfig(
            train_manifests=(corpus / "all.jsonl",),
            valid_manifest=corpus / "all.jsonl",
            segment_samples=SEGMENT,
        ),
        "losses": LossConfig(mel_weight=0.0, stft_weight=0.0),
        "adversary": None,
        "validation": {"every_steps": 4, "max_clips": 2, "num_logged_clips": 0},
        "distillation": DistillationConfig(
            text=text_guide(corpus),
            speech=speech_guide(corpus, "wide", own_map_dim=5),
            characters=CharacterGuide(store=corpus / "text"),
        ),
    }
    return Experiment(**{**settings, **changes})


@pytest.fixture(scope="module")
def train():
    pytest.importorskip("accelerate", reason="training needs dmcodec[train]")
    pytest.importorskip("tensorboard", reason="training needs dmcodec[train]")
    from dmcodec.training.loop import train

    return train


def test_guided_run_resumes_bit_for_bit_and_logs_every_guide(corpus, tmp_path, train):
    experiment = make_experiment(corpus)
    scores = train(experiment, tmp_path / "whole", device="cpu").scores
    train(experiment, tmp_path / "parts", device="cpu")
    last = tmp_path / "parts" / "checkpoints" / "step_00000004"
    for path in last.iterdir():
        path.unlink()
    last.rmdir()

    train(experiment, tmp_path / "parts", device="cpu", resume=True)

    for name in ("codec", "heads", "optimizer", "average"):
        file = f"checkpoints/step_00000004/{name}.safetensors"
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    line = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[0])
    for name in ("distillation", "distill_text", "distill_speech", "characters"):
        assert line[f"train/loss_{name}"] > 0
    assert scores["loss_distill_text"] > 0.3
    assert scores["loss_distill_speech"] > 0.3


def test_run_without_distillation_keeps_its_checkpoints_as_they_were(corpus, tmp_path, train):
    codec = CODEC.model_copy(update={"feature_dim": None})
    experiment = make_experiment(corpus, codec=codec, distillation=None, num_steps=2)
    train(experiment, tmp_path, device="cpu")
    checkpoint = tmp_path / "checkpoints" / "step_00000002"

    names = {path.name for path in checkpoint.iterdir()}
    table = json.loads((checkpoint / "experiment.json").read_text())
    del table["distillation"]  # as checkpoints from before it
    (checkpoint / "experiment.json").write_text(json.dumps(table))

    assert "heads.safetensors" not in names
    assert load_experiment(checkpoint) == experiment


def test_guided_run_starts_from_a_codec_without_a_map(corpus, tmp_path):
    plain = CODEC.model_copy(update={"feature_dim": None})
    before = new_state(make_experiment(corpus, codec=plain, distillation=None))
    checkpoint = save_checkpoint(
        before, make_experiment(corpus, codec=plain, distillation=None), tmp_path
    )
    state = new_state(make_experiment(corpus))
    fresh = state.codec.feature_map.weight.clone()

    initialize_from(state, checkpoint)

    for name, value in before.averaged_codec.state_dict().items():
        torch.testing.assert_close(state.codec.state_dict()[name], value, rtol=0, atol=0)
    assert state.averaged_codec.state_dict().keys() == state.codec.state_dict().keys()
    assert fresh.shape == (6, 16)
