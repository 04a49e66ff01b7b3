"""One process of those that train a quantizer together; test_quantizer.py starts it.

Usage: python quantizer_process.py RANK WORLD_SIZE FOLDER
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from dmcodec.codec.quantizer import QuantizerConfig, ResidualQuantizer

CONFIG = QuantizerConfig(
    num_codebooks=3,
    codebook_size=16,
    kmeans_max_vectors=100,  # less than the 130 or so frames of a batch: the start draws some
    renewal_threshold=0.2,
)


def make_batches(num_steps: int) -> list[tuple[Tensor, Tensor]]:
    """Latents [5, 4, 40] and lengths [5] of each step."""
    generator = torch.Generator().manual_seed(7)
    batches = []
    for _ in range(num_steps):
        latents = torch.randn(5, 4, 40, generator=generator)
        batches.append((latents, torch.randint(1, 41, (5,), generator=generator)))
    return batches


def train(items: slice) -> dict[str, Tensor]:
    """All buffers after each step on the batches' items: start, moving average, renewal."""
    torch.set_num_threads(1)
    quantizer = ResidualQuantizer(CONFIG, latent_dim=4)
    history: dict[str, Tensor] = {}
    for step, (latents, lengths) in enumerate(make_batches(4)):
        if step == 3:
            quantizer.cluster_sizes[:, 3:6] = 0  # must be renewed now
        quantizer(latents[items], lengths[items], update=True)
        for name, value in quantizer.state_dict().items():
            history[f"{step}.{name}"] = value.clone()
    return history


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.manual_seed(rank)  # noqa: TID251 (processes agree whatever their global seeds)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    # An uneven split: three items for the first, two for the other.
    history = train(slice(0, 3) if rank == 0 else slice(3, 5))
    save_file(history, folder / f"rank{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
