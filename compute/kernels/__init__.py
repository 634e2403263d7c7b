"""Kernels over the paged KV pool; chosen once when the model is built."""

import torch

from compute.kernels.interface import Kernels
from compute.kernels.torch_cpu import TorchKernels


def choose(device: torch.device) -> Kernels:
    """The kernels for a device."""
    return TorchKernels()
