"""examples/pretrain_hubert.py makes a speech teacher from a manifest."""

import re
import subprocess
import sys
from pathlib import Path

import torch
from tests.teachers.conftest import transformers
from tests.training.conftest import speech

from dmcodec.teachers.alignment import codec_grid
from dmcodec.teachers.speech import SpeechTeacher, SpeechTeacherConfig

EXAMPLE = Path(__file__).parents[2] / "examples" / "pretrain_hubert.py"

__all__ = ["speech", "transformers"]


def test_pretrained_model_teaches(speech, transformers, tmp_path):
    command = [sys.executable, str(EXAMPLE), str(speech / "train.jsonl"), "-o", str(tmp_path / "m")]
    command += ["--valid", str(speech / "train.jsonl"), "--clusters", "8"]

    done = subprocess.run(
        [*command, "--steps", "2", "--batch-size", "2", "--seconds", "0.9"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert "2 steps" in done.stdout
    assert re.search(r"valid: loss \d\.\d+ on masked frames", done.stdout)
    teacher = SpeechTeacher(SpeechTeacherConfig(model=str(tmp_path / "m")), codec_grid(16_000, 320))
    noise = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    features, mask = teacher.frame_features(noise, torch.tensor([16_000]), 50)
    assert features.shape == (1, 50, 192)
    assert bool(mask.all())
    assert float(features.std(dim=1).mean()) > 0.01  # the frames differ
