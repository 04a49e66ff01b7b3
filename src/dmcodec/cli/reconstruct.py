"""The command that sends sound through the codec and measures what is left: reconstruct."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, Self

import typer

from dmcodec.cli.batch import for_each
from dmcodec.cli.options import (
    ColumnNames,
    Device,
    Force,
    Inputs,
    MaxFailures,
    Model,
    NumCodebooks,
    PrecisionName,
    SearchWidth,
    Threads,
    load_codec,
    parse_columns,
)
from dmcodec.cli.terminal import plain_console, printable, say, show_reports, show_table

if TYPE_CHECKING:
    from dmcodec.codec.model import Codec
    from dmcodec.reconstruction import Reconstruction

_SCORES = {"stoi": "STOI", "pesq_wb": "PESQ-WB"}


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

    from dmcodec.codec.engine import TorchCodec
    from dmcodec.paths import plan_outputs
    from dmcodec.reconstruction import reconstruct as reconstruct_file

    problems: list[str] = []
    paths, names = _find_speech(inputs, parse_columns(columns), problems.append)
    # Without a folder nothing is written.
    targets = list(paths) if output is None else plan_outputs(inputs, paths, output, ".wav", names)
    codec = load_codec(model, device, precision, threads)
    engine = TorchCodec(codec)
    silence = torch.zeros(codec.config.sample_rate)
    codec.decode(codec.encode(silence, search_width=search_width))  # the first pass sets up
    results: dict[Path, _Result] = {}

    def work(path: Path, target: Path) -> None:
        result = reconstruct_file(
            engine, path, num_codebooks=num_codebooks, search_width=search_width
        )
        results[path] = _Result.of(result)
        if output is not None:
            _write(target, result, codec.config.sample_rate, title=printable(path.name))

    report = for_each(
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
    if output is not None and report.num_done:
        say(f"wrote WAV, .dmc and PNG of {report.num_done} file(s) to {output}")
    show_reports({"reconstructing": report}, max_failures)


def _write(target: Path, result: "Reconstruction", sample_rate: int, *, title: str) -> None:
    """Sound, codes and picture together: never the sound of other codes."""
    from dmcodec.audio import write_audio
    from dmcodec.reconstruction import plot_reconstruction
    from dmcodec.storage import replace_together, write_whole

    with replace_together(target.parent) as aside:
        staged = aside / target.name
        write_whole(staged.with_suffix(".dmc"), result.data)
        write_audio(staged, result.decoded, sample_rate)
        plot_reconstruction(result, sample_rate, title, staged.with_suffix(".png"))


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


def _show_reconstructions(codec: "Codec", results: dict[Path, _Result]) -> None:
    """One file in full, or a row for each of several and their means."""
    from rich.table import Table

    console, sample_rate = plain_console(), codec.config.sample_rate
    if len(results) == 1:
        ((path, result),) = results.items()
        show_table(f"{path.name} through {codec.model_id}", _describe_result(codec, result))
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
