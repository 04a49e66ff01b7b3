"""Cut the release's loss values down to what the tests compare with.

Usage: python tests/golden/make_release_losses.py REFERENCE_OUTPUTS

REFERENCE_OUTPUTS is a `losses.pt` of tensors: random inputs, and what the losses of the released
DM-Codec (commit 25c742a) gave on them, with torch 2.13 on CPU in float32. The two waveform batches
go to two files, so that each stays small.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
SOURCE = {
    "source": "losses of DM-Codec 25c742a on random tensors",
    "torch": "2.13",
    "device": "cpu",
}


def main(reference_outputs: Path) -> None:
    outputs = torch.load(reference_outputs, weights_only=True)  # noqa: TID251 (made outside, once)
    tensors = {
        "reference": outputs["x"],
        "loss_waveform": outputs["recon(x,xh2)"],
        "loss_mels": torch.stack([outputs[f"mel_scale{index}(x,xh2)"] for index in range(4)]),
        "loss_feature": outputs["feature"],
        "loss_discriminator": outputs["discriminator"],
        "loss_generator": outputs["adversarial"],
    }
    for side, letter in (("real", "r"), ("fake", "g")):
        for index, logits in enumerate(outputs[f"logits_{letter}"]):
            tensors[f"logits.{side}.{index}"] = logits.contiguous()
        for index, maps in enumerate(outputs[f"fmap_{letter}"]):
            for depth, feature_map in enumerate(maps):
                tensors[f"feature_maps.{side}.{index}.{depth}"] = feature_map.contiguous()
    save_file(tensors, HERE / "release_losses.safetensors", metadata=SOURCE)
    save_file(
        {"estimate": outputs["xh2"]},
        HERE / "release_losses_estimate.safetensors",
        metadata=SOURCE,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
