"""Commands that work on files: encode, decode, reconstruct, info."""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from os.path import exists
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, NamedTuple, Self

import typer

from dmcodec.cli.options import (
    STDIN,
    Backend,
    ColumnNames,
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
    describe_problem,
    load_codec,
    open_engine,
    parse_columns,
    read_bytes,
    say_damaged,
)
from dmcodec.cli.terminal import plain_console, printable, say, show_progress, show_reports
from dmcodec.jobs import Failure, Report

if TYPE_CHECKING:
    from dmcodec.audio import Waveform
    from dmcodec.codec.model import Codec
    from dmcodec.reconstruction import Reconstruction

_SCORES = {"stoi": "STOI", "pesq_wb": "PESQ-WB"}


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

    report = _for_each("encoding", paths, targets, work, force, problems=problems)
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

    report = _for_each("decoding", paths, targets, work, force, problems=problems)
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


def reconstruct(
    inputs: Inputs,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Writes WAV, .dmc and PNG; default: measure only."
        ),
    ] = None,
    num_codebooks: NumCodebooks = None,
    search_width: SearchWidth = 1,
    model: Model = None,
    device: Device = "cpu",
    precision: PrecisionName = "float32",
    threads: Threads = None,
    force: Force = False,
    columns: ColumnNames = None,
    max_failures: MaxFailures = "0",
) -> None:
    """Encode and decode sound files (or a .jsonl manifest), and measure what is left of them."""
    import torch

    from dmcodec.audio import write_audio
    from dmcodec.codec.engine import TorchCodec
    from dmcodec.paths import plan_outputs
    from dmcodec.reconstruction import plot_reconstruction
    from dmcodec.reconstruction import reconstruct as reconstruct_file
    from dmcodec.storage import replace_together, write_whole

    problems: list[str] = []
    paths, names = _find_speech(inputs, parse_columns(columns), problems.append)
    # Without a folder nothing is written.
    targets = list(paths) if output is None else plan_outputs(inputs, paths, output, ".wav", names)
    codec = load_codec(model, device, precision, threads)
    engine = TorchCodec(codec)
    silence = torch.zeros(codec.config.sample_rate)
    codec.decode(codec.encode(silence, search_width=search_width))  # the first pass sets up
    results: dict[Path, _Result] = {}
    num_written = 0

    def work(path: Path, target: Path) -> None:
        nonlocal num_written
        result = reconstruct_file(
            engine, path, num_codebooks=num_codebooks, search_width=search_width
        )
        results[path] = _Result.of(result)
        if output is not None:
            title, rate = printable(path.name), codec.config.sample_rate
            with replace_together(target.parent) as aside:  # never the sound of other codes
                staged = aside / target.name
                write_whole(staged.with_suffix(".dmc"), result.data)
                write_audio(staged, result.decoded, rate)
                plot_reconstruction(result, rate, title, staged.with_suffix(".png"))
            num_written += 1

    report = _for_each(
        "reconstructing",
        paths,
        targets,
        work,
        force,
        beside=(".dmc", ".png"),
        is_writing=output is not None,
        problems=problems,
    )
    _show_reconstructions(codec, results)
    if num_written:
        say(f"wrote WAV, .dmc and PNG of {num_written} file(s) to {output}")
    show_reports({"reconstructing": report}, max_failures)


def info(
    what: Annotated[
        str | None,
        typer.Argument(metavar="[FILE|MODEL]", help="A .dmc file, a codec folder or a Hub id."),
    ] = None,
) -> None:
    """Say what a .dmc file or a model is; without argument, the bundled model."""
    if what is not None and Path(what).is_file():
        _show_table(Path(what).name, _describe_file(Path(what)))
    elif what is not None and what.endswith(".dmc"):
        raise FileNotFoundError(f"{what}: no such file")
    else:
        codec = load_codec(what, "cpu")
        _show_table(codec.model_id, _describe_codec(codec))


def _for_each(
    title: str,
    paths: Sequence[Path],
    targets: Sequence[Path],
    work: Callable[[Path, Path], None],
    force: bool,
    *,
    beside: Sequence[str] = (),
    is_writing: bool = True,
    problems: Sequence[str] = (),
) -> Report:
    """Works on every file with a progress bar, also when others fail.

    Without `force` nothing is replaced: neither a target nor its namesakes with suffixes `beside`.
    `problems` are of inputs that gave no file: they are counted with the failures.
    An input is never replaced.
    """
    failures: list[Failure] = [{"reason": problem} for problem in problems]
    report = Report(total=len(paths) + len(problems), failures=failures)
    inputs = {number for path in paths if (number := _file_number(path)) is not None}
    with show_progress() as progress:
        for path, target in zip(paths, targets, strict=True):
            progress(title, report.num_finished, report.total)
            try:
                for result in (target, *map(target.with_suffix, beside)) if is_writing else ():
                    if not exists(result):
                        continue
                    if _file_number(result) in inputs:
                        raise FileExistsError(
                            f"{result} is one of the inputs and is not replaced: name another "
                            "folder with -o"
                        )
                    if not force:
                        raise FileExistsError(f"{result} exists: give --force to replace it")
                work(path, target)
                report.num_done += 1
            except (ValueError, OSError) as problem:
                text = describe_problem(problem)
                failures.append({"reason": text if str(path) in text else f"{path}: {text}"})
    return report


def _file_number(path: Path) -> tuple[int, int] | None:
    """What a file has under all of its names; None for what is none, or cannot be one."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _find_speech(
    inputs: Sequence[Path], columns: dict[str, str], on_problem: Callable[[str], None]
) -> tuple[list[Path], dict[Path, str]]:
    """Sound files of files, folders and manifests; those of manifests with their ids."""
    from dmcodec.corpus.kinds import is_manifest
    from dmcodec.corpus.manifest import read_manifests
    from dmcodec.paths import find_inputs

    manifests = [path for path in inputs if is_manifest(path)]
    ids: dict[Path, str] = {}
    for utterance in read_manifests(manifests, columns=columns, on_problem=on_problem):
        try:
            first = ids.setdefault(utterance.sound_file, utterance.id)
        except ValueError as problem:
            on_problem(str(problem))
            continue
        if first != utterance.id:
            on_problem(f"{utterance.id}: is {utterance.audio} once more, as {first}")
    others = find_inputs([path for path in inputs if path not in manifests], on_problem)
    return list(dict.fromkeys([*ids, *others])), ids


class _Result(NamedTuple):
    """What is shown of a reconstruction: all but the sound, of which there may be hours."""

    num_samples: int
    num_bytes: int
    num_books: int
    encode_s: float
    decode_s: float
    scores: dict[str, float]
    missing: dict[str, str]

    @classmethod
    def of(cls, result: "Reconstruction") -> Self:
        """The figures of a reconstruction."""
        sizes = (len(result.original), len(result.data), len(result.codes))
        return cls(*sizes, result.encode_s, result.decode_s, result.scores, result.missing)


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
    num_parameters = sum(p.numel() for p in codec.parameters()) + codec.quantizer.codebooks.numel()
    return {
        "audio": f"{config.sample_rate} Hz mono, {config.frame_rate:g} frames/s",
        "codes": f"{config.quantizer.num_codebooks} books of {config.quantizer.codebook_size}, "
        f"{config.bitrate_kbps:g} kbps",
        "parameters": f"{num_parameters / 1e6:.2f} million, codebooks included",
        "network": f"{config.seanet.num_filters} filters, strides "
        f"{', '.join(map(str, config.seanet.strides))}, latent size {config.seanet.latent_dim}",
        "decoder": config.decoder.kind,
        "hash": codec.fingerprint(),
    }


def _show_reconstructions(codec: "Codec", results: dict[Path, _Result]) -> None:
    """One file in full, or a row for each of several and their means."""
    from rich.table import Table

    console, sample_rate = plain_console(), codec.config.sample_rate
    if len(results) == 1:
        ((path, result),) = results.items()
        _show_table(f"{path.name} through {codec.model_id}", _describe_result(codec, result))
    elif results:
        table = Table(title=codec.model_id)
        table.add_column("file", overflow="fold")
        for name in ("seconds", "STOI", "PESQ-WB", "encode", "decode"):
            table.add_column(name, justify="right", no_wrap=True)
        for path, result in list(results.items())[:20]:
            duration_s = result.num_samples / sample_rate
            table.add_row(
                path.name,
                f"{duration_s:.2f}",
                *(f"{result.scores[n]:.3f}" if n in result.scores else "-" for n in _SCORES),
                f"{duration_s / result.encode_s:.0f}x",
                f"{duration_s / result.decode_s:.0f}x",
            )
        console.print(table)
        if len(results) > 20:
            console.print(f"... and {len(results) - 20} more files")
        console.print(_summarize(list(results.values()), sample_rate), soft_wrap=True)
    for path, result in results.items():
        for reason in result.missing.values():
            console.print(f"{path.name}: {reason}", soft_wrap=True)


def _describe_result(codec: "Codec", result: _Result) -> dict[str, str]:
    """What one reconstruction cost and is worth."""
    from dmcodec.reconstruction import describe_cost

    rows = describe_cost(
        codec,
        num_samples=result.num_samples,
        num_bytes=result.num_bytes,
        num_books=result.num_books,
        encode_s=result.encode_s,
        decode_s=result.decode_s,
    )
    for name, title in _SCORES.items():
        if name in result.scores:
            rows[title] = f"{result.scores[name]:.3f} against the input"
    return rows


def _summarize(results: list[_Result], sample_rate: int) -> str:
    """Means over files; speed over the total."""
    total_s = sum(r.num_samples for r in results) / sample_rate
    encode_s, decode_s = sum(r.encode_s for r in results), sum(r.decode_s for r in results)
    parts = [f"mean of {len(results)} files, {total_s / 60:.1f} min:"]
    for name, title in _SCORES.items():
        values = [r.scores[name] for r in results if name in r.scores]
        if values:
            parts.append(f"{title} {sum(values) / len(values):.3f} (n = {len(values)}),")
    size_bits = 8 * sum(r.num_bytes for r in results)
    parts.append(f"{size_bits / total_s / 1000:.2f} kbps with headers,")
    parts.append(f"encode {total_s / encode_s:.0f}x, decode {total_s / decode_s:.0f}x real time")
    return " ".join(parts)


def _show_table(title: str, rows: dict[str, str]) -> None:
    from rich.table import Table

    table = Table(title=title, show_header=False)
    for key, value in rows.items():
        table.add_row(key, value)
    plain_console().print(table)
