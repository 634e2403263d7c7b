"""Kernels over the paged KV pool; chosen once when the model is built."""

import torch

from compute.kernels.interface import Kernels
from compute.kernels.native_cpu import MAX_STACK_FLOATS, NativeKernels, native_kernels
from compute.kernels.torch_cpu import TorchKernels
from compute.model_config import ModelConfig


def choose(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Kernels:
    """The fastest kernels that this machine has for a model."""
    group_floats = config.num_heads // config.num_kv_heads * config.head_dim
    if device.type == "cpu" and group_floats <= MAX_STACK_FLOATS:
        library = native_kernels(dtype)
        if library is not None:
            return NativeKernels(library)
    return TorchKernels()
