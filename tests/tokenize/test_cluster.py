from pathlib import Path

import pytest
from tests.tokenize.conftest import contents

from dmcodec.codec.model import Codec
from dmcodec.corpus.manifest import Utterance, read_manifest
from dmcodec.tokenize.cluster import Cluster, share_cores
from dmcodec.tokenize.job import TokenizeReport, describe_corpus, tokenize
from dmcodec.tokens.shards import CorpusInfo

pytest.importorskip("pyarrow", reason="shards are Parquet: pip install 'dmcodec[data]'")


@pytest.mark.parametrize(
    ("cores", "num_workers", "threads"),
    [([2], 1, 2), ([2], 2, 1), ([2], 3, 1), ([16, 16, 4], 4, 8), ([16, 16, 4], 9, 4), ([], 2, 1)],
)
def test_ray_workers_share_the_cores(cores: list[int], num_workers: int, threads: int) -> None:
    assert share_cores(cores, num_workers) == threads


def tokenize_patiently(
    codec: Codec, utterances: list[Utterance], output: Path, info: CorpusInfo
) -> TokenizeReport:
    """The job on two workers; tried again where Ray gives a starting node its 30 s in vain.

    On a machine with other work it takes longer at times; nothing is done before a node is there.
    """
    import ray

    cluster = Cluster(address="local", num_workers=2)
    for _ in range(9):
        try:
            return tokenize(codec, utterances, output, info, cluster=cluster)
        except Exception as error:  # Ray raises it as such
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
    return tokenize(codec, utterances, output, info, cluster=cluster)


def test_ray_gives_the_same_files(codec: Codec, manifest: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'dmcodec[data]'")
    utterances = read_manifest(manifest)
    info = describe_corpus(codec, utterances, shard_size=4)
    tokenize(codec, utterances, tmp_path / "here", info)

    job = tokenize_patiently(codec, utterances, tmp_path / "ray", info)

    assert job.num_done == 21
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")
