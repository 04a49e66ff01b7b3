"""Commands that work on files: encode, decode, info."""

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from dmcodec.cli.batch import for_each
from dmcodec.cli.options import (
    STDIN,
    Backend,
    CommandError,
    Device,
    Force,
    Inputs,
    MaxFailures,
    Model,
    NumCodebooks,
    Output,
    PrecisionName,
    Runtime,
    SearchWidth,
    Threads,
    load_codec,
    open_engine,
    read_bytes,
    say_damaged,
)
from dmcodec.cli.terminal import show_reports, show_table

if TYPE_CHECKING:
    from dmcodec.audio import Waveform
    from dmcodec.codec.model import Codec


def encode(
    inputs: Inputs,
    output: Output = None,
    num_codebooks: NumCodebooks = None,
    search_width: SearchWidth = 1,
    model: Model = None,
    device: Device = "cpu",
    precision: PrecisionName = "float32",
    threads: Threads = None,
    force: Force = False,
    backend: Backend = Runtime.TORCH,
    max_failures: MaxFailures = "0",
) -> None:
    """Encode sound files (wav, flac, ogg, mp3, any rate and channels) to .dmc files."""
    from dmcodec.audio import SoundBytes
    from dmcodec.files import encode_file
    from dmcodec.paths import find_inputs, plan_outputs
    from dmcodec.storage import write_whole

    problems: list[str] = []
    is_piped = _is_piped(inputs, output)
    paths = [] if is_piped else find_inputs(inputs, problems.append)
    targets = plan_outputs(inputs, paths, output, ".dmc")
    encode_sound = partial(
        encode_file,
        open_engine(backend, model, device, precision, threads),
        num_codebooks=num_codebooks,
        search_width=search_width,
    )
    if is_piped:
        sys.stdout.buffer.write(encode_sound(SoundBytes("stdin", sys.stdin.buffer.read())))
        sys.stdout.buffer.flush()
        return

    def work(path: Path, target: Path) -> None:
        write_whole(target, encode_sound(path))

    report = for_each("encoding", paths, targets, work, force, problems=problems)
    show_reports({"encoding": report}, max_failures)


def decode(
    inputs: Inputs,
    output: Output = None,
    num_codebooks: NumCodebooks = None,
    model: Model = None,
    device: Device = "cpu",
    precision: PrecisionName = "float32",
    threads: Threads = None,
    force: Force = False,
    skip_damage: Annotated[
        bool, typer.Option("--skip-damage", help="Read around damaged chunks; they are silent.")
    ] = False,
    any_model: Annotated[
        bool, typer.Option("--any-model", help="Decode codes that another model made.")
    ] = False,
    backend: Backend = Runtime.TORCH,
    max_failures: MaxFailures = "0",
) -> None:
    """Decode .dmc files to 16-bit WAV files."""
    from dmcodec.audio import write_audio_blocks
    from dmcodec.files import decode_blocks
    from dmcodec.paths import find_inputs, plan_outputs

    problems: list[str] = []
    is_piped = _is_piped(inputs, output)
    paths = [] if is_piped else find_inputs(inputs, problems.append, [".dmc"])
    targets = plan_outputs(inputs, paths, output, ".wav")
    engine = open_engine(backend, model, device, precision, threads)

    def decode_codes(path: Path, data: bytes) -> "Iterator[Waveform]":
        blocks, damaged = decode_blocks(
            engine,
            data,
            num_codebooks=num_codebooks,
            any_model=any_model,
            on_damage="skip" if skip_damage else "raise",
        )
        if damaged:
            say_damaged(path, damaged)
        return blocks

    if is_piped:
        blocks = decode_codes(STDIN, sys.stdin.buffer.read())
        _write_wav(sys.stdout.buffer, blocks, engine.sample_rate)
        return

    def work(path: Path, target: Path) -> None:
        blocks = decode_codes(path, read_bytes(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        write_audio_blocks(target, blocks, engine.sample_rate)

    report = for_each("decoding", paths, targets, work, force, problems=problems)
    show_reports({"decoding": report}, max_failures)


def _is_piped(inputs: Sequence[Path], output: Path | None) -> bool:
    """Whether the command reads stdin and writes stdout; CommandError for half of that."""
    if STDIN not in inputs:
        return False
    if len(inputs) > 1 or output is not None:
        raise CommandError("- reads stdin and writes stdout: it goes with no other input or -o")
    return True


def _write_wav(sink: BinaryIO, blocks: "Iterator[Waveform]", sample_rate: int) -> None:
    """Sound as a 16-bit WAV file, whole, so that its header knows its size."""
    import numpy as np

    from dmcodec.audio import dump_wav_16

    sink.write(dump_wav_16(np.concatenate(list(blocks)), sample_rate))
    sink.flush()


def info(
    what: Annotated[
        str | None,
        typer.Argument(metavar="[FILE|MODEL]", help="A .dmc file, a codec folder or a Hub id."),
    ] = None,
) -> None:
    """Say what a .dmc file or a model is; without argument, the bundled model."""
    if what is not None and Path(what).is_file():
        show_table(Path(what).name, _describe_file(Path(what)))
    elif what is not None and what.endswith(".dmc"):
        raise FileNotFoundError(f"{what}: no such file")
    else:
        codec = load_codec(what, "cpu")
        show_table(codec.model_id, _describe_codec(codec))


def _describe_file(path: Path) -> dict[str, str]:
    from dmcodec.audio import samples_to_seconds
    from dmcodec.tokens.bitstream import MAX_HEADER_BYTES, BitstreamError, loads, read_header

    with path.open("rb") as file:
        head = file.read(MAX_HEADER_BYTES)
    try:
        header = read_header(head)
    except BitstreamError as problem:
        raise BitstreamError(f"{path}: {problem}") from problem
    data, state = path.read_bytes(), "whole"
    try:
        loads(data)
    except BitstreamError as problem:
        state = f"damaged: {problem}"
    return {
        "duration": f"{samples_to_seconds(header.num_samples, header.sample_rate):.3f} s, "
        f"{header.num_samples} samples at {header.sample_rate} Hz",
        "codes": f"{header.num_codebooks} books of {header.codebook_size}, "
        f"{header.num_frames} frames of {header.hop_length} samples",
        "bitrate": f"{header.bitrate_kbps:g} kbps nominal",
        "size": f"{len(data)} bytes ({state}) in {header.num_chunks} chunks",
        "model": f"{header.model_id} ({header.model_hash})",
    }


def _describe_codec(codec: "Codec") -> dict[str, str]:
    config = codec.config
    return {
        "audio": f"{config.sample_rate} Hz mono, {config.frame_rate:g} frames/s",
        "codes": f"{config.quantizer.num_codebooks} books of {config.quantizer.codebook_size}, "
        f"{config.bitrate_kbps:g} kbps",
        "parameters": f"{codec.num_parameters / 1e6:.2f} million, codebooks included",
        "network": f"{config.seanet.num_filters} filters, strides "
        f"{', '.join(map(str, config.seanet.strides))}, latent size {config.seanet.latent_dim}",
        "decoder": config.decoder.kind,
        "hash": codec.fingerprint(),
    }
