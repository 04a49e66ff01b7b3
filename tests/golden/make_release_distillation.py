"""Cut the release's distillation losses down to what the tests compare with.

Usage: python tests/golden/make_release_distillation.py REFERENCE_OUTPUTS

REFERENCE_OUTPUTS is a `losses.pt` of tensors: random features, and what the d-axis and t-axis
losses of the released DM-Codec (commit 25c742a) gave on them, with torch 2.13 on CPU in float32.
There the student had one frame more than the teacher, and was cut without a word; here it is cut
beforehand. The t-axis loss was computed with its missing function put right.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent


def main(reference_outputs: Path) -> None:
    outputs = torch.load(reference_outputs, weights_only=True)  # noqa: TID251 (made outside, once)
    teacher = outputs["target"]
    tensors = {
        "student": outputs["feat"][:, : teacher.shape[1]].contiguous(),
        "teacher": teacher.contiguous(),
        "loss_d_axis": outputs["d_axis(feat,target)"],
        "loss_t_axis": outputs["t_axis(feat,target,lambda_sim=1)"],
        "loss_t_axis_half": outputs["t_axis(lambda_sim=0.5)"],
    }
    metadata = {
        "source": "losses of DM-Codec 25c742a on random tensors",
        "torch": "2.13",
        "device": "cpu",
    }
    save_file(tensors, HERE / "release_distillation.safetensors", metadata=metadata)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
