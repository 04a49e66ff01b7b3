"""The second stage: a decoder that learns on the codes of an encoder that does not."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dmcodec.codec.model import Codec
from dmcodec.config import ConfigError
from dmcodec.corpus.manifest import read_manifest
from dmcodec.corpus.sources import read_utterance
from dmcodec.data.dataset import SegmentDataset
from dmcodec.tokenize.job import describe_corpus, tokenize
from dmcodec.training.loop import train
from dmcodec.training.state import new_state

SPECTRAL = 'codec.decoder={kind="spectral", channels=16, num_blocks=1, upsampling=2, n_fft=640}'


def weights_of(folder: Path, *, decoder: bool) -> dict[str, Tensor]:
    codec = Codec.from_pretrained(folder)
    return {k: v for k, v in codec.state_dict().items() if k.startswith("decoder.") == decoder}


def tokens_of(codec_folder: Path, manifest: Path, output: Path) -> Path:
    codec, utterances = Codec.from_pretrained(codec_folder), read_manifest(manifest)
    tokenize(codec, utterances, output, describe_corpus(codec, utterances))
    return output


@pytest.fixture(scope="module")
def tokens(finished_run, speech, tmp_path_factory) -> Path:
    """The training list in codes of the finished run's codec."""
    folder = tmp_path_factory.mktemp("second") / "tokens"
    return tokens_of(finished_run / "codec", speech / "train.jsonl", folder)


@pytest.fixture(scope="module")
def second(tiny, finished_run, tokens):
    """An experiment of the second stage, with further assignments."""

    def make(*assignments: str):
        return tiny(
            f'init_from="{finished_run / "codec"}"',
            "is_encoder_frozen=true",
            f'data.codes="{tokens}"',
            "data.gain_db=[0, 0]",
            "data.use_polarity_flip=false",
            "adversary.networks.log_n_ffts=[128]",
            "adversary.networks.log_stft_channels=[4, 4]",
            *assignments,
        )

    return make


def test_only_the_decoder_learns(second, finished_run, tmp_path):
    train(second(), tmp_path / "run", device="cpu")

    before, after = finished_run / "codec", tmp_path / "run" / "codec"
    kept = weights_of(before, decoder=False)
    for name, value in weights_of(after, decoder=False).items():
        torch.testing.assert_close(value, kept[name], atol=1e-6, rtol=1e-5, msg=name)
    moved = weights_of(before, decoder=True)
    assert all(not torch.equal(v, moved[n]) for n, v in weights_of(after, decoder=True).items())


def test_codes_stay_the_same_with_a_new_decoder(second, finished_run, tmp_path, speech):
    experiment = second(SPECTRAL)
    train(experiment, tmp_path / "run", device="cpu")

    first, new = (Codec.from_pretrained(f / "codec") for f in (finished_run, tmp_path / "run"))

    assert new.config.decoder == experiment.codec.decoder
    utterance = read_manifest(speech / "valid.jsonl")[0]
    waveform = read_utterance(utterance, sample_rate=16_000)
    assert torch.equal(new.encode(waveform).codes, first.encode(waveform).codes)


def test_interrupted_second_stage_goes_on_as_if_nothing_had_happened(second, tmp_path):
    # The run is extended on resuming: with a constant rate its course is the same.
    constant = ["optimizer.schedule=constant", "adversary.optimizer.schedule=constant"]
    train(second(SPECTRAL, *constant), tmp_path / "straight", device="cpu")
    train(second(SPECTRAL, *constant, "num_steps=10"), tmp_path / "parts", device="cpu")
    train(second(SPECTRAL, *constant), tmp_path / "parts", resume=True, device="cpu")

    straight, parts = (
        weights_of(tmp_path / name / "codec", decoder=True) for name in ("straight", "parts")
    )
    for name, value in straight.items():
        assert torch.equal(value, parts[name]), name


def test_segments_carry_the_codes_of_the_whole_utterance(second, finished_run):
    experiment = second()
    codec = Codec.from_pretrained(finished_run / "codec")
    utterances = read_manifest(experiment.data.train_manifests[0])
    dataset = SegmentDataset(utterances, experiment.data, seed=3)

    starts = set()
    for number in range(12):
        segment = dataset[number]
        utterance = dataset.utterances[segment.utterance_index]
        whole = codec.encode(read_utterance(utterance, sample_rate=16_000)).codes[0]
        first = segment.start_samples // 320
        starts.add(first)
        assert segment.codes is not None
        # Two sums in another order may choose another of two equally near entries.
        is_equal = segment.codes == whole[:, first : first + 15]
        assert is_equal.float().mean() > 0.98
    assert len(starts) > 3


def test_encoder_runs_where_no_codes_are_stored(second, accelerator, make_batches):
    from dmcodec.training.step import train_step

    experiment = second("adversary.start_step=100")
    online = experiment.model_copy(
        update={"data": experiment.data.model_copy(update={"codes": None})}
    )
    (batch,) = make_batches(online, 1)
    state = new_state(online)
    books = state.codec.quantizer.codebooks.clone()
    encoder = [p.clone() for p in state.codec.encoder.parameters()]

    terms = train_step(state, online, batch, accelerator)

    assert "commitment" in terms
    assert torch.equal(state.codec.quantizer.codebooks, books)
    now = list(state.codec.encoder.parameters())
    assert all(torch.equal(a, b) for a, b in zip(encoder, now, strict=True))
    assert all(p.grad is None for p in now)


def test_codes_of_another_codec_are_refused(second, tiny, speech, tmp_path):
    other = Codec(tiny().codec).eval()
    other.save_pretrained(tmp_path / "other")
    tokens = tokens_of(tmp_path / "other", speech / "train.jsonl", tmp_path / "tokens")

    with pytest.raises(ValueError, match=r"holds other codes of .* than the codec of this"):
        train(second(f'data.codes="{tokens}"'), tmp_path / "run", device="cpu")


def test_utterances_without_codes_are_named(second, finished_run, speech, tmp_path):
    tokens = tokens_of(finished_run / "codec", speech / "valid.jsonl", tmp_path / "tokens")

    with pytest.raises(ValueError, match="has no codes of utterance 'train-95-0'"):
        train(second(f'data.codes="{tokens}"'), tmp_path / "run", device="cpu")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("data.gain_db=[-3, 0]", "stored codes are those of the sound as it is"),
        ("data.use_polarity_flip=true", "stored codes are those of the sound as it is"),
        ("is_encoder_frozen=false", "data.codes needs is_encoder_frozen"),
    ],
)
def test_what_contradicts_stored_codes_is_refused(second, assignment, message):
    with pytest.raises(ConfigError, match=message):
        second(assignment)


def test_frozen_encoder_must_come_from_somewhere(tiny):
    with pytest.raises(ConfigError, match="whose encoder and books"):
        tiny("is_encoder_frozen=true")


def test_the_second_stage_of_the_bundled_model_runs(tiny, finished_run, tokens, tmp_path):
    codec = tiny().codec
    experiment = tiny(
        "num_steps=4",
        "batch_size=2",
        f'init_from="{finished_run / "codec"}"',
        f'data.codes="{tokens}"',
        f"codec.seanet.num_filters={codec.seanet.num_filters}",
        f"codec.seanet.latent_dim={codec.seanet.latent_dim}",
        f"codec.seanet.num_lstm_layers={codec.seanet.num_lstm_layers}",
        f"codec.quantizer.num_codebooks={codec.quantizer.num_codebooks}",
        f"codec.quantizer.codebook_size={codec.quantizer.codebook_size}",
        "codec.decoder.channels=16",
        "data.corpus_weights={}",
        "adversary.start_step=2",
        "optimizer.warmup_steps=1",
        name="small_decoder",
    )

    scores = train(experiment, tmp_path / "run", device="cpu").scores

    assert scores.keys() >= {"mel_distance", "stoi"}
