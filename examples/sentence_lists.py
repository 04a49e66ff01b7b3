"""Does guidance teach speech, or only the sentences it was given? Lists to ask that of a new voice.

Some corpora have the same sentences read by several speakers (CMU ARCTIC, Kathleen). From a
manifest with such a corpus, whose ids name the sentence (arctic_a0001), this writes

    train.jsonl   everything but the speaker held out and the sentences of part b
    probe.jsonl   what the phone probe learns from: none of the sentences at all
    seen.jsonl    the speaker held out says sentences of part a, which are in train.jsonl
    new.jsonl     ... and of part b, which are not

    python examples/sentence_lists.py speech/train.jsonl -o lists --speaker arctic-slt
"""

# ruff: noqa: T201
import argparse
import json
import re
from pathlib import Path

_SENTENCE = re.compile(r"arctic_([ab])\d{4}")


def main() -> None:
    """Writes the four lists."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--speaker", required=True, help="of the manifest, held out")
    parser.add_argument(
        "--clips", type=int, default=150, help="of each of the lists that are heard"
    )
    args = parser.parse_args()
    lists: dict[str, list[str]] = {"train": [], "probe": [], "seen": [], "new": []}
    for line in args.manifest.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        entry["audio"] = str((args.manifest.parent / entry["audio"]).resolve())
        sentence = _SENTENCE.search(entry["id"])
        part = sentence.group(1) if sentence else None
        if entry["speaker"] == args.speaker:
            names = ["seen" if part == "a" else "new"] if part else []
        else:
            names = ["train", "probe"] if part is None else ["train"] if part == "a" else []
        for name in names:
            if name in ("train", "probe") or len(lists[name]) < args.clips:
                lists[name].append(json.dumps(entry, ensure_ascii=False))
    if not lists["seen"] or not lists["new"]:
        parser.error(f"{args.manifest} has no sentences arctic_a..., arctic_b... of {args.speaker}")
    args.output.mkdir(parents=True, exist_ok=True)
    for name, lines in lists.items():
        path = args.output / f"{name}.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{path}: {len(lines)} recordings")


if __name__ == "__main__":
    main()
