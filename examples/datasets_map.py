"""Codes as a column of a Hugging Face dataset: `datasets.map` in batches, on a column of audio.

    pip install 'dmcodec[data]'
    python examples/datasets_map.py recordings/ -o coded/

The recordings may be a folder of sound files or a manifest, or a dataset on disk or on the Hub with
a column `audio`. Its sounds are read by dmcodec, not by datasets, which needs torchcodec. Then:

    from datasets import load_from_disk
    codes = load_from_disk("coded")[0]["codes"]     # 8 lists of codes, 50 a second
"""

# ruff: noqa: T201
import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Audio, Dataset, Features, List, Value, load_dataset, load_from_disk

import dmcodec
from dmcodec.corpus.manifest import read_manifests


class AddCodes:
    """Rows with audio -> rows with codes, for `Dataset.map(..., batched=True)`.

    Codes of a row do not depend on the batch it came in.
    """

    def __init__(self, codec: dmcodec.Codec) -> None:
        self._codec = codec

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """The new column: `codes`, [K, L_i] of each row."""
        sounds = [each["bytes"] or each["path"] for each in batch["audio"]]
        encoded = self._codec.encode(sounds)
        return {"codes": [encoded.item(row).tolist() for row in range(len(encoded))]}


def read_dataset(source: str) -> Dataset:
    """Rows with `audio`: of a manifest or folder of sound files, a saved dataset, or the Hub's."""
    if (Path(source) / "dataset_info.json").is_file():
        return load_from_disk(source)
    if not Path(source).exists():
        return load_dataset(source, split="train")
    rows = [
        {
            "id": utterance.id,
            "text": utterance.text,
            "audio": {"path": str(utterance.audio), "bytes": None},
        }
        for utterance in read_manifests([Path(source)])
    ]
    text, sound = Value("string"), {"path": Value("string"), "bytes": Value("binary")}
    return Dataset.from_list(rows, Features({"id": text, "text": text, "audio": sound}))


def main() -> None:
    """Encodes a dataset and saves it with its codes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", help="folder or Hub id; default: the bundled model")
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    codec = dmcodec.Codec.from_pretrained(args.model) if args.model else dmcodec.load()
    rows = read_dataset(args.source).cast_column("audio", Audio(decode=False))
    features = Features({**rows.features, "codes": List(List(Value("uint16")))})
    rows = rows.map(AddCodes(codec), batched=True, batch_size=args.batch_size, features=features)
    rows.save_to_disk(args.output)
    print(f"{args.output}: {len(rows)} rows, columns {', '.join(rows.column_names)}")


if __name__ == "__main__":
    main()
