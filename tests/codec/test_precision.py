"""Precision of the network: bfloat16 and TF32 outside the quantizer, float32 unless asked."""

import pytest
import torch

from dmcodec.codec.long import decode_long, encode_long
from dmcodec.codec.model import Codec, CodecConfig
from dmcodec.codec.precision import check_precision, computing_in
from dmcodec.codec.quantizer import QuantizerConfig
from dmcodec.codec.seanet import SEANetConfig


def make_codec() -> Codec:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(3)
        config = CodecConfig(
            seanet=SEANetConfig(num_filters=4, latent_dim=16),
            quantizer=QuantizerConfig(codebook_size=16, num_codebooks=2),
        )
        return Codec(config).eval()


def test_bfloat16_is_near_float32_and_gives_float32_sound() -> None:
    codec = make_codec()
    waveform = 0.1 * torch.randn(2, 16_000, generator=torch.Generator().manual_seed(1))
    exact = codec.encode(waveform)
    sound = codec.decode(exact)

    codec.precision = "bfloat16"
    rounded = codec.encode(waveform)
    decoded = codec.decode(exact)

    share = float((rounded.codes == exact.codes).double().mean())
    assert 0.7 < share < 1
    assert decoded.dtype == torch.float32
    error = (decoded - sound).norm() / sound.norm()
    assert 1e-4 < error < 0.05


def test_long_audio_is_rounded_too_and_autocast_ends_with_each_block() -> None:
    codec = make_codec()
    waveform = 0.1 * torch.randn(9_000, generator=torch.Generator().manual_seed(2))
    exact, _ = encode_long(codec, [waveform], chunk_frames=7)
    codec.precision = "bfloat16"

    codes, _ = encode_long(codec, [waveform], chunk_frames=7)
    share = float((codes == exact).double().mean())
    assert 0.7 < share < 1
    for block in decode_long(codec, exact, 9_000, chunk_frames=7):
        assert block.dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")


def test_names_are_checked() -> None:
    cpu = torch.device("cpu")
    assert check_precision("bfloat16", cpu) == "bfloat16"
    with pytest.raises(ValueError, match="not one of float32, tf32, bfloat16"):
        check_precision("fp8", cpu)
    with pytest.raises(ValueError, match="of CUDA devices"):
        check_precision("tf32", cpu)
    codec = make_codec()
    codec.precision = "bf16"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="precision is 'bf16', not one of"):
        codec.encode(torch.zeros(400))


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9"
)
@pytest.mark.parametrize("precision", ["float32", "tf32"])
@pytest.mark.parametrize("outside", ["ieee", "tf32"])
def test_rounding_of_gpus_is_off_unless_asked_for_and_restored(
    precision: str, outside: str
) -> None:
    places = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
    first = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = outside
        with computing_in(check_precision(precision, torch.device("cuda")), torch.device("cuda")):
            inside = {place.fp32_precision for place in places}
        assert inside == {"tf32" if precision == "tf32" else "ieee"}
        assert {place.fp32_precision for place in places} == {outside}
    finally:
        for place, value in zip(places, first, strict=True):
            place.fp32_precision = value


def test_compiled_networks_run_under_encode_and_decode() -> None:
    codec = make_codec()
    codec.precision = "bfloat16"  # as on a GPU: not the fast path
    generator = torch.Generator().manual_seed(4)
    clips = [0.1 * torch.randn(n, generator=generator) for n in (3000, 1700, 3000)]
    encoded = codec.encode(clips)
    decoded = codec.decode(encoded)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    codec.encoder.compile(backend=backend)
    codec.decoder.compile(backend=backend)

    assert torch.equal(codec.encode(clips).codes, encoded.codes)
    num_graphs = len(graphs)
    assert num_graphs > 0
    assert torch.equal(codec.decode(encoded), decoded)
    assert len(graphs) > num_graphs
