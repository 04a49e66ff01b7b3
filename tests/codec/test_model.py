import numpy as np
import pytest
import soundfile
import torch
from pydantic import ValidationError

from dmcodec.audio import AudioError, read_audio, resample, write_audio
from dmcodec.codec import model as model_module
from dmcodec.codec.batches import similar_lengths
from dmcodec.codec.conv import add_weight_norm
from dmcodec.codec.model import Codec, CodecConfig, Encoded
from dmcodec.codec.quantizer import QuantizerConfig
from dmcodec.codec.seanet import SEANetConfig

LONGEST = 700  # over two hops of 320


@pytest.fixture(scope="module")
def waveforms():
    """The same noise cut to every length from one sample up."""
    noise = 0.1 * torch.randn(LONGEST, generator=torch.Generator().manual_seed(2))
    return [noise[:length] for length in range(1, LONGEST + 1)]


@pytest.fixture(scope="module")
def singles(codec, waveforms):
    return [codec.encode(waveform) for waveform in waveforms]


@pytest.fixture(scope="module")
def batch(codec, waveforms):
    return codec.encode(waveforms)


@pytest.fixture
def noise(generator):
    return 0.1 * torch.randn(1000, generator=generator)


def test_every_length_gives_its_frames_and_comes_back_as_long(codec, waveforms, singles):
    for length, single in enumerate(singles, start=1):
        assert single.codes.shape[-1] == -(-length // 320)
        assert (single.lengths.tolist(), single.num_samples.tolist()) == (
            [-(-length // 320)],
            [length],
        )
    for length in (1, 2, 6, 7, 319, 320, 321, 639, 640, 641, 700):
        assert codec.decode(singles[length - 1]).shape == (1, length)


def test_batch_of_mixed_lengths_gives_the_codes_of_its_items(singles, batch):
    assert batch.num_samples.tolist() == list(range(1, LONGEST + 1))
    for row, single in enumerate(singles):
        assert torch.equal(batch.item(row), single.codes[0])


def test_codes_are_laid_out_as_those_of_mimi_and_dac(singles, batch):
    found = batch.as_transformers()

    for row, single in enumerate(singles):
        heard = found["padding_mask"][row].bool()
        assert torch.equal(found["audio_codes"][row][:, heard], single.codes[0])


def test_codes_are_zero_beyond_an_item(singles, batch):
    for row, single in enumerate(singles):
        assert not batch.codes[row, :, single.codes.shape[-1] :].any()


def test_batch_decodes_to_the_waveforms_of_its_items_and_zeros(codec, singles, batch):
    decoded = codec.decode(batch)

    assert decoded.shape == (LONGEST, LONGEST)
    for row, single in enumerate(singles):
        torch.testing.assert_close(
            decoded[row, : row + 1], codec.decode(single)[0], rtol=0, atol=1e-5
        )
        assert not decoded[row, row + 1 :].any()
    assert float(decoded.abs().mean()) > 0.01


def test_items_of_like_length_share_a_batch_once_it_is_busy():
    sizes = [50, 100, 81, 79, 99, 10, 9, 80]

    assert similar_lengths(sizes, 250) == [[1, 4, 2, 7], [3, 0, 5, 6]]  # 79 < 0.8 x 100
    assert similar_lengths(sizes, 150) == [[1, 4, 2, 7], [3, 0], [5, 6]]
    assert similar_lengths(sizes, 1_000_000) == [[1, 4, 2, 7, 3, 0, 5, 6]]
    assert similar_lengths([7], 1) == [[0]]


def test_plain_batches_of_like_length_give_what_items_give_alone(
    build_codec, waveforms, singles, monkeypatch
):
    plain = build_codec()
    add_weight_norm(plain)  # as in training, and as layers run on a GPU: see fast.py
    monkeypatch.setattr(model_module, "BUSY_FRAMES", 4)
    order = torch.randperm(LONGEST, generator=torch.Generator().manual_seed(3)).tolist()[:120]
    shapes = []
    plain.encoder.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    plain.decoder.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))

    encoded = plain.encode([waveforms[n] for n in order])
    num_encoder_batches = len(shapes)
    decoded = plain.decode(encoded)

    assert 5 < num_encoder_batches < 12
    assert len(shapes) - num_encoder_batches == 3  # 3, 2 and 1 frame
    assert sum(shape[0] for shape in shapes) == 2 * len(order)
    for row, number in enumerate(order):
        assert torch.equal(encoded.item(row), singles[number].codes[0])
        torch.testing.assert_close(
            decoded[row, : number + 1],
            plain.decode(singles[number])[0],
            rtol=0,
            atol=1e-5,
        )
        assert not decoded[row, number + 1 :].any()


def test_batch_of_equal_lengths_gives_the_codes_and_waveforms_of_its_items(codec, generator):
    waveforms = 0.1 * torch.randn(3, 1000, generator=generator)

    batch = codec.encode(waveforms)
    decoded = codec.decode(batch)

    for row in range(3):
        alone = codec.encode(waveforms[row])
        assert torch.equal(batch.codes[row], alone.codes[0])
        torch.testing.assert_close(decoded[row], codec.decode(alone)[0], rtol=0, atol=1e-5)


def test_training_pass_does_not_see_what_lies_beyond_an_item(build_codec, noise):
    num_samples = torch.tensor([4000, 321])
    results = []
    for beyond in (0.0, 1e3):
        waveform = noise.repeat(2, 4)[:, None]  # 13 frames, and 2 of them
        waveform[1, :, 321:] = beyond
        codec = build_codec()
        output = codec(waveform, num_samples, update=True)
        results.append((output, codec.state_dict()))

    (quiet, quiet_state), (loud, loud_state) = results
    assert torch.equal(loud.waveform, quiet.waveform)
    assert torch.equal(loud.quantizer.codes, quiet.quantizer.codes)
    assert torch.equal(loud.quantizer.commitment_loss, quiet.quantizer.commitment_loss)
    assert all(torch.equal(loud_state[name], value) for name, value in quiet_state.items())
    assert not quiet.waveform[1, :, 321:].any()
    assert quiet.quantizer.codes[1, :, 2:].unique().tolist() == [-1]


def test_training_pass_gives_what_encode_and_decode_give(codec, noise):
    batch = torch.stack([noise, noise.flip(0)])[:, None]
    batch[1, :, 321:] = 0
    encoded = codec.encode([noise, noise.flip(0)[:321]])

    output = codec(batch, torch.tensor([1000, 321]))

    assert torch.equal(output.quantizer.codes[0], encoded.item(0))
    assert torch.equal(output.quantizer.codes[1, :, :2], encoded.item(1))
    torch.testing.assert_close(output.waveform[:, 0], codec.decode(encoded), rtol=0, atol=1e-5)


def test_training_pass_is_one_update_and_trains_every_weight(build_codec, noise):
    codec = build_codec()
    before = int(codec.quantizer.num_updates)

    output = codec(noise[None, None], update=True)
    feature = codec.feature_map(output.quantizer.book_outputs[0].transpose(1, 2))
    loss = output.waveform.square().mean() + output.quantizer.commitment_loss
    (loss + feature.square().mean()).backward()

    assert int(codec.quantizer.num_updates) == before + 1
    untouched = [n for n, p in codec.named_parameters() if not bool(p.grad.abs().sum() > 0)]
    assert untouched == []


@pytest.mark.parametrize(
    ("shape", "num_samples", "message"),
    [
        ((2, 50), None, r"\[B, 1, T\], got shape \(2, 50\)"),
        ((2, 2, 50), None, r"\[B, 1, T\]"),
        ((2, 1, 50), [50, 51], "num_samples must be 2 whole numbers from 1 to 50"),
        ((2, 1, 50), [50, 0], "from 1 to 50"),
        ((2, 1, 50), [50], "2 whole numbers"),
        ((2, 1, 50), [50.0, 20.0], "2 whole numbers"),
    ],
)
def test_training_pass_refuses_shapes_and_lengths_that_do_not_fit(
    codec, shape, num_samples, message
):
    lengths = None if num_samples is None else torch.tensor(num_samples)
    with pytest.raises(ValueError, match=message):
        codec(torch.zeros(shape), lengths)


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x[None],
        lambda x: x[None, None],
        lambda x: [x],
        lambda x: x.double(),
        lambda x: x.clone().requires_grad_(),
        lambda x: x.numpy(),
        lambda x: x.numpy().astype(np.float64)[None],
        lambda x: x.numpy().astype(">f4"),
        lambda x: x.numpy()[::-1].copy()[::-1],
        lambda x: [x.numpy()[None, None]],
    ],
)
def test_every_form_of_a_waveform_gives_its_codes(codec, noise, convert):
    expected = codec.encode(noise)

    encoded = codec.encode(convert(noise))

    assert torch.equal(encoded.codes, expected.codes)
    assert encoded.num_samples.tolist() == [1000]


def test_read_only_array_is_taken_without_a_warning(codec, noise, recwarn):
    array = noise.numpy().copy()
    array.flags.writeable = False

    codec.encode(array)

    assert [str(warning.message) for warning in recwarn] == []


def test_encoding_leaves_the_input_as_it_was(codec, noise):
    before = noise.clone()

    codec.encode([noise, noise[:500]])

    assert torch.equal(noise, before)


def test_file_gives_the_codes_of_its_mono_waveform_at_the_right_rate(codec, noise, tmp_path):
    path = tmp_path / "stereo.v1.wav"
    stereo = np.stack([noise.numpy(), noise.numpy()[::-1]], axis=1)
    soundfile.write(path, stereo, 44100)
    mono = read_audio(path, sample_rate=16000)

    for given in (path, str(path), [path]):
        encoded = codec.encode(given)
        assert torch.equal(encoded.codes, codec.encode(mono).codes)
        assert encoded.num_samples.tolist() == [len(mono)] == [363]


def test_files_arrays_and_tensors_go_in_one_list(codec, noise, tmp_path):
    path = tmp_path / "a.wav"
    write_audio(path, noise.numpy()[:400])

    encoded = codec.encode([path, noise[:700].numpy(), noise.expand(2, 1000)])

    assert encoded.num_samples.tolist() == [400, 700, 1000, 1000]
    assert torch.equal(encoded.item(0), codec.encode(path).codes[0])
    assert torch.equal(encoded.item(1), codec.encode(noise[:700]).codes[0])
    assert torch.equal(encoded.item(3), codec.encode(noise).codes[0])


def test_waveform_of_another_rate_is_resampled(codec, noise):
    encoded = codec.encode(noise.clone().requires_grad_(), sample_rate=8000)

    expected = codec.encode(resample(noise.numpy(), 8000, 16000))
    assert torch.equal(encoded.codes, expected.codes)
    assert encoded.num_samples.tolist() == [2000]
    assert torch.equal(codec.encode(noise, sample_rate=16000).codes, codec.encode(noise).codes)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (torch.zeros(10, dtype=torch.int16), "dtype torch.int16; give float .* 32768"),
        (np.zeros(10, dtype=np.int16), "dtype int16; give float"),
        (np.zeros(10, dtype=bool), "dtype bool"),
        (np.array(["a"]), "dtype"),
        (torch.tensor([0.0, float("nan")]), "NaN or infinite"),
        (np.array([0.0, np.inf]), "NaN or infinite"),
        (torch.zeros(0), "empty; give at least one sample"),
        (np.zeros((2, 0)), "empty"),
        (torch.zeros(4000, 2), r"\(4000, 2\) looks like \[T, channels\]"),
        (torch.zeros(1, 2, 100), r"\(1, 2, 100\); average the channels of stereo"),
        (torch.zeros(1, 1, 1, 5), r"\[T\], \[B, T\] or \[B, 1, T\], got shape \(1, 1, 1, 5\)"),
        (torch.tensor(0.5), r"got shape \(\)"),
        ([], "non-empty list"),
        (None, "got NoneType"),
        ([0.0, 0.1], "got float"),
        ([torch.zeros(5), torch.zeros(0)], "empty"),
    ],
)
def test_audio_that_is_none_is_refused(codec, audio, message):
    with pytest.raises(ValueError, match=message):
        codec.encode(audio)


def test_missing_and_damaged_files_are_named(codec, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.wav"):
        codec.encode(tmp_path / "none.wav")
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(AudioError, match=r"text\.wav"):
        codec.encode([tmp_path / "text.wav"])


def test_impossible_rates_are_refused(codec, noise):
    with pytest.raises(ValueError, match="positive"):
        codec.encode(noise, sample_rate=0)


def test_first_books_of_encode_and_decode_are_the_head_of_all(codec, noise):
    full = codec.encode(noise)

    first = codec.encode(noise, num_codebooks=2)

    assert torch.equal(first.codes, full.codes[:, :2])
    assert torch.equal(codec.decode(first), codec.decode(full, num_codebooks=2))
    assert not torch.allclose(codec.decode(first), codec.decode(full), atol=1e-2)


def test_range_of_books_is_the_tail_of_all_codes_and_decodes_to_their_sum(codec, noise):
    full = codec.encode([noise, noise[:500]])

    tail = full.select_codebooks(1, 4)
    middle = tail.select_codebooks(2, 3)
    decoded = codec.decode(tail)

    assert torch.equal(tail.codes, full.codes[:, 1:])
    assert torch.equal(middle.codes, full.codes[:, 2:3])
    assert middle.first_codebook == 2
    with torch.no_grad():
        vectors = sum(codec.quantizer.codebooks[k][full.codes[:, k]] for k in (1, 2, 3))
        alone = codec.decoder(vectors[:1].transpose(1, 2))[0, 0, :1000]
    torch.testing.assert_close(decoded[0], alone, rtol=0, atol=1e-5)
    head = codec.decode(tail, num_codebooks=2)
    assert torch.equal(head, codec.decode(full.select_codebooks(1, 3)))


@pytest.mark.parametrize(("first", "stop"), [(2, 2), (3, 1), (-1, 2), (0, 5), (4, 5)])
def test_books_that_are_not_there_cannot_be_selected(codec, noise, first, stop):
    with pytest.raises(ValueError, match="books 0 to 3 are there"):
        codec.encode(noise).select_codebooks(first, stop)


@pytest.mark.parametrize("num_codebooks", [0, 5])
def test_numbers_of_books_that_are_not_there_are_refused(codec, noise, num_codebooks):
    with pytest.raises(ValueError, match="1 to 4"):
        codec.encode(noise, num_codebooks=num_codebooks)
    with pytest.raises(ValueError, match="books 0 to 3 are there"):
        codec.decode(codec.encode(noise), num_codebooks=num_codebooks)


def test_codes_alone_decode_to_whole_frames(codec, noise):
    encoded = codec.encode(noise)

    decoded = codec.decode(encoded.codes)

    assert decoded.shape == (1, 4 * 320)
    torch.testing.assert_close(decoded[:, :1000], codec.decode(encoded), rtol=0, atol=0)
    assert torch.equal(codec.decode(encoded.codes[0]), decoded)
    assert torch.equal(codec.decode(encoded.codes.to(torch.uint16)), decoded)
    first = codec.decode(encoded.select_codebooks(1, 3))
    again = codec.decode(encoded.codes[:, 1:3], first_codebook=1)
    torch.testing.assert_close(again[:, :1000], first, rtol=0, atol=0)


@pytest.mark.parametrize("beyond", [0, 15, -1, 10**6])
def test_codes_with_lengths_decode_whatever_lies_beyond(codec, noise, beyond):
    encoded = codec.encode([noise, noise[:500]])
    codes = encoded.codes.clone()
    codes[1, :, 2:] = beyond

    decoded = codec.decode(codes, [4, 2])

    expected = codec.decode(encoded.item(1))
    assert decoded.shape == (2, 1280)
    torch.testing.assert_close(decoded[1, :640], expected[0], rtol=0, atol=1e-5)
    assert not decoded[1, 640:].any()


@pytest.mark.parametrize(
    ("shape", "lengths", "first", "message"),
    [
        ((4,), None, 0, r"\[B, K, L\] or \[K, L\], got shape \(4,\)"),
        ((1, 1, 4, 4), None, 0, r"\[B, K, L\]"),
        ((0, 4, 4), None, 0, r"\[B, K, L\]"),
        ((1, 4, 0), None, 0, r"\[B, K, L\]"),
        ((2, 4, 4), [4], 0, "lengths must be 2 whole numbers from 1 to 4"),
        ((2, 4, 4), [4, 0], 0, "from 1 to 4"),
        ((2, 4, 4), [4, 5], 0, "from 1 to 4"),
        ((2, 4, 4), [4.0, 2.0], 0, "whole numbers"),
        ((2, 4, 4), None, 1, "books 1 to 4 were given"),
        ((2, 4, 4), None, -1, "books -1 to 2 were given"),
    ],
)
def test_codes_that_do_not_fit_are_refused(codec, shape, lengths, first, message):
    codes = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        codec.decode(codes, lengths, first_codebook=first)


def test_record_refuses_parts_that_do_not_fit(codec, noise):
    encoded = codec.encode(noise)
    with pytest.raises(ValueError, match="lengths must be 1 whole numbers from 1 to 4"):
        Encoded(encoded.codes, torch.tensor([5]), encoded.num_samples)
    with pytest.raises(ValueError, match="num_samples must be"):
        Encoded(encoded.codes, encoded.lengths, torch.tensor([5, 6]))
    with pytest.raises(ValueError, match="codes of another codec"):
        codec.decode(Encoded(encoded.codes, encoded.lengths, torch.tensor([400])))
    with pytest.raises(ValueError, match="in the record already"):
        codec.decode(encoded, first_codebook=1)


def test_no_gradients_are_recorded_and_recording_goes_on_after(build_codec, noise):
    codec = build_codec()

    decoded = codec.decode(codec.encode(noise.clone().requires_grad_()))

    assert not decoded.requires_grad
    assert codec(noise[None, None]).waveform.requires_grad


def test_whole_codec_runs_under_autocast_with_a_float32_quantizer(codec, noise):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latents = codec.encoder(noise[None, None])
        output = codec(noise[None, None])

    assert latents.dtype == torch.bfloat16
    assert output.quantizer.quantized.dtype == torch.float32
    assert torch.equal(output.quantizer.codes, codec.quantizer.encode(latents.float()))


def test_numbers_of_the_paper():
    config = CodecConfig()
    assert (config.hop_length, config.frame_rate, config.bitrate_kbps) == (320, 50.0, 4.0)


def test_bits_of_odd_book_sizes_are_rounded_up():
    config = CodecConfig(quantizer=QuantizerConfig(num_codebooks=2, codebook_size=1025))
    assert config.bitrate_kbps == pytest.approx(50 * 2 * 11 / 1000)


def test_unknown_keys_are_refused():
    with pytest.raises(ValidationError, match="latent_size"):
        CodecConfig(seanet={"latent_size": 8})


def test_fingerprint_changes_with_each_part_that_makes_codes_or_sound(build_codec):
    prints = {build_codec().fingerprint()}
    for name in (
        "encoder.blocks.1.downsample.conv.bias",
        "encoder.lstm.lstm.weight_hh_l1_reverse",
        "decoder.conv_out.conv.weight",
        "quantizer.codebooks",
    ):
        codec = build_codec()
        codec.state_dict()[name].view(-1)[-1] += 1e-3
        prints.add(codec.fingerprint())
    prints.add(build_codec(sample_rate=8000).fingerprint())

    assert len(prints) == 6
    assert all(len(value) == 16 and int(value, 16) >= 0 for value in prints)


def test_fingerprint_changes_with_settings_that_shapes_do_not_show():
    prints = set()
    for changes in ({}, {"dilation_base": 3}):
        seanet = SEANetConfig(num_filters=2, latent_dim=2, num_residual_layers=2, **changes)
        config = CodecConfig(seanet=seanet, quantizer=QuantizerConfig(codebook_size=4))
        codec = Codec(config)
        for value in codec.state_dict().values():
            value.zero_()
        prints.add(codec.fingerprint())

    assert len(prints) == 2


def test_fingerprint_stays_with_what_only_training_uses(build_codec):
    codec = build_codec()
    expected = codec.fingerprint()

    codec.quantizer.cluster_sizes += 1
    codec.feature_map.weight.data += 1

    assert codec.fingerprint() == expected
    quantizer = codec.config.quantizer.model_copy(update={"ema_decay": 0.5})
    codec.config = codec.config.model_copy(update={"quantizer": quantizer})
    assert codec.fingerprint() == expected


def test_encode_takes_a_codec_in_training_form(build_codec, noise):
    codec = build_codec()
    expected = codec.encode(noise)

    add_weight_norm(codec)

    assert torch.equal(codec.encode(noise).codes, expected.codes)
