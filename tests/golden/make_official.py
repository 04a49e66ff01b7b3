"""Cut reference outputs of the official network down to what the tests compare with.

Usage: python tests/golden/make_official.py REFERENCE_FOLDER

REFERENCE_FOLDER holds what the released DM-Codec (commit 25c742a) gave for a small, randomly
filled configuration with torch 2.13 on CPU in float32: its config.json, `keys_shapes.json`,
`filled_state_dict.pt`, `inputs.pt`, `eval_io.pt` and `edge_lengths.pt`. Two files come out:
`official_layout.json`, the configuration and every tensor's name and shape, and
`official_quantizer.safetensors`, the books and the linear map with their inputs and outputs for a
few frames. The whole network's weights are too large for the repository: test_published.py writes
the network out to compare with, and reads the folder itself where it is at hand.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
SOURCE = {"source": "DM-Codec 25c742a, randomly filled", "torch": "2.13", "device": "cpu"}
NUM_FRAMES = 16


def main(reference: Path) -> None:
    names = json.loads((reference / "keys_shapes.json").read_text())
    layout = {
        **SOURCE,
        "config": json.loads((reference / "config.json").read_text()),
        "shapes": {name: shape for name, (shape, _) in names.items()},
    }
    (HERE / "official_layout.json").write_text(json.dumps(layout, indent=1) + "\n")

    def read(name: str) -> dict[str, torch.Tensor]:
        return torch.load(reference / name, weights_only=True)  # noqa: TID251 (made outside, once)

    weights, outputs = read("filled_state_dict.pt"), read("eval_io.pt")
    books = [weights[f"quantizer.vq.layers.{k}._codebook.embed"] for k in range(8)]
    tensors = {
        "codebooks": torch.stack(books),
        "transform.weight": weights["transform.weight"],
        "transform.bias": weights["transform.bias"],
        "latents": outputs["x1.encoder_out"][..., :NUM_FRAMES],
        "codes": outputs["x1.codes"][..., :NUM_FRAMES].transpose(0, 1).to(torch.uint8),
        "quantized": outputs["x1.quantizer_decode"][..., :NUM_FRAMES],
        "features": outputs["x1.forward.feature"][:, :NUM_FRAMES],
    }
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    save_file(tensors, HERE / "official_quantizer.safetensors", metadata=SOURCE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
