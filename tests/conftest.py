"""Without a GPU, Triton's kernels run in its interpreter. The switch is read when triton is imported, by whatever
imports it first, so it is set before any test module is."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
