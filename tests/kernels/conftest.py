"""What every test of a kernel starts from."""

import pytest
import torch

from tests.support.interpreter import DEVICE


@pytest.fixture
def device() -> torch.device:
    return DEVICE


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(20240611)
