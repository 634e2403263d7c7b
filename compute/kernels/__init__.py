"""Kernels over the paged KV pool; chosen once when the model is built."""

import torch

from compute.kernels.interface import Kernels
from compute.kernels.native_cpu import NativeKernels, attends, native_kernels
from compute.kernels.torch_cpu import TorchKernels
from compute.model_config import ModelConfig


def choose(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Kernels:
    """The fastest kernels that this machine has for a model on a device."""
    if device.type == "cuda":
        from compute.kernels.cuda import CudaKernels  # noqa: PLC0415 - Triton comes with CUDA's torch alone

        return CudaKernels()
    group = config.num_heads // config.num_kv_heads
    if attends(group, config.head_dim):
        library = native_kernels(dtype)
        if library is not None:
            return NativeKernels(library)
    return TorchKernels()
