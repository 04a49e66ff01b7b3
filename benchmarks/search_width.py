"""What a wider search of the codes brings and costs: sound, squared error, time, language models.

    python benchmarks/search_width.py speech/test.jsonl --clips 16 --widths 1 4 16

Of all clips: squared error of the latents against that of greedy codes (width 1), the share of
codes that differ from these, perplexity of books, and their bigram perplexity (metrics/codes.py:
how well a bigram model of one half of the clips predicts the other). Of `--clips` of them, drawn as
`dmcodec evaluate` draws: STOI and PESQ-WB. CPU time is that of the quantizer alone on one thread,
the widths in turn on the same frames, the shortest of `--repeats`; and what making the tables took,
once for a codec. "book 1 kept" searches books 2 to K behind the greedy book 1, at the last width.
"""
# ruff: noqa: T201

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from codec_speed import load_codec
from torch import Tensor

from dmcodec.codec.model import Codec
from dmcodec.codec.search import BookSearch
from dmcodec.corpus.manifest import read_manifest
from dmcodec.corpus.sources import read_utterance
from dmcodec.evaluation.protocols import choose_clips
from dmcodec.metrics.codes import book_statistics
from dmcodec.metrics.intelligibility import stoi
from dmcodec.metrics.opinion import pesq_wb

TIMED_FRAMES = 1000
Encode = Callable[[Tensor], Tensor]
"""Latents [1, D, L] to codes [1, K, L]."""


@torch.no_grad()
def main() -> None:
    """Measures and prints the tables."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    codec = load_codec(arguments.model)
    rate = codec.config.sample_rate
    utterances = read_manifest(arguments.manifest)
    waveforms = {u.id: torch.from_numpy(read_utterance(u, sample_rate=rate)) for u in utterances}
    latents = {name: codec.encoder(w[None, None]) for name, w in waveforms.items()}
    heard = [u.id for u in choose_clips(utterances, "full", arguments.clips)]
    started = time.thread_time()
    codec.quantizer.encode(torch.zeros(1, codec.config.seanet.latent_dim, 1), search_width=2)
    print(f"model {codec.fingerprint()}, {len(latents)} clips, {len(heard)} of them heard")
    print(f"tables of products: {time.thread_time() - started:.2f} s, once\n")

    ways: dict[str, Encode] = {
        str(width): lambda x, w=width: codec.quantizer.encode(x, search_width=w)  # type: ignore[misc]
        for width in arguments.widths
    }
    joined = torch.cat(list(latents.values()), dim=2)[..., :TIMED_FRAMES]
    times = time_in_turn(ways, joined, arguments.repeats)
    behind = BookSearch(codec.quantizer.codebooks[1:])
    width = arguments.widths[-1]
    ways[f"{width}, book 1 kept"] = lambda x: keeping_book_1(codec, behind, x, width)
    codes = {way: {n: encode(x) for n, x in latents.items()} for way, encode in ways.items()}

    print_times(times, joined.shape[2] / codec.config.frame_rate)
    print_books(codec, codes)
    print_quality(codec, codes, latents, waveforms, heard)


def print_times(times: dict[str, float], speech_s: float) -> None:
    """What the quantizer takes for a second of speech."""
    print("| width | CPU, s a second of speech | more than greedy |\n|---|---|---|")
    for way, taken_s in times.items():
        each, more = (t / speech_s for t in (taken_s, taken_s - next(iter(times.values()))))
        print(f"| {way} | {each:.4f} | {more:.4f} |", flush=True)


def print_quality(
    codec: Codec,
    codes: dict[str, dict[str, Tensor]],
    latents: dict[str, Tensor],
    waveforms: dict[str, Tensor],
    heard: list[str],
) -> None:
    """Squared error and sound; the sound of the first books of all codes too."""
    books = codec.config.quantizer.num_codebooks
    heads = [n for n in (1, 4) if n < books]
    print("\n| width | squared error | STOI | PESQ-WB |", end="")
    print("".join(f" STOI, PESQ-WB of the first {n} |" for n in heads))
    print("|---" * (4 + len(heads)) + "|")
    of_greedy = None
    for way, of_clips in codes.items():
        error = sum(
            float((latents[n] - codec.quantizer.decode(c)).square().sum())
            for n, c in of_clips.items()
        )
        of_greedy = of_greedy or error
        cells = [f"{error / of_greedy - 1:+.1%}"]
        for first in (books, *heads):
            scores = []
            for name in heard:
                original = waveforms[name].numpy()
                decoded = codec.decode(of_clips[name], num_codebooks=first)[0, : len(original)]
                pair = (original, decoded.numpy(), codec.config.sample_rate)
                scores.append((stoi(*pair), pesq_wb(*pair)))
            means = np.mean(scores, axis=0)
            cells.append(f"{means[0]:.4f}{' | ' if first == books else ', '}{means[1]:.3f}")
        print(f"| {way} | {' | '.join(cells)} |", flush=True)


def print_books(codec: Codec, codes: dict[str, dict[str, Tensor]]) -> None:
    """What a language model gets: changed codes, and how predictable the books are."""
    size = codec.config.quantizer.codebook_size
    greedy = next(iter(codes.values()))
    names = ("width", "book 1 changed", "all changed", "perplexity of book 1")
    books_of = ("book 1", "book 2", "later books, mean")
    print(f"\n| {' | '.join((*names, *(f'bigram perplexity, {n}' for n in books_of)))} |")
    print("|---" * 7 + "|")
    for way, of_clips in codes.items():
        changed = torch.cat([c[0] != greedy[n][0] for n, c in of_clips.items()], dim=1).double()
        statistics = book_statistics([c[0].numpy() for c in of_clips.values()], size)
        bigrams = [each.bigram_perplexity or float("nan") for each in statistics]
        print(
            f"| {way} | {changed[0].mean():.1%} | {changed.mean():.1%} | "
            f"{statistics[0].perplexity:.0f} | {bigrams[0]:.0f} | {bigrams[1]:.0f} | "
            f"{np.mean(bigrams[2:]):.0f} |",
            flush=True,
        )


def keeping_book_1(codec: Codec, behind: BookSearch, latents: Tensor, width: int) -> Tensor:
    """Codes of a search in all books but the first, whose codes stay greedy."""
    first = codec.quantizer.encode(latents, 1)
    left = (latents - codec.quantizer.decode(first))[0].t().contiguous()
    rest = behind(left, len(behind.codebooks), width)  # [L, K - 1]
    return torch.cat([first, rest.t()[None]], dim=1)


def time_in_turn(ways: dict[str, Encode], latents: Tensor, repeats: int) -> dict[str, float]:
    """Shortest CPU seconds of each way."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):
        for way, encode in ways.items():
            started = time.thread_time()
            encode(latents)
            best[way] = min(best[way], time.thread_time() - started)
    return best


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", default="bundled", help="bundled, full, or a codec folder")
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--clips", type=int, default=16, help="to be heard")
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
