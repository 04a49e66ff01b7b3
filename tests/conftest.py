"""What every test starts from: seeded generators, one thread, and no hurry."""

import random

import numpy as np
import pytest
import torch
from hypothesis import settings

# How long an example takes says more about the machine than about the code. Examples are the same
# in every run: a random network has frames in which two entries are equally near, on one processor
# and not on another, and a run that draws one tells nothing of the change under test.
settings.register_profile("dmcodec", deadline=None, derandomize=True, database=None)
settings.load_profile("dmcodec")


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """Seeds all global generators; one thread gives the same sums on every machine."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (third-party code draws from the global generator)
    random.seed(0)
