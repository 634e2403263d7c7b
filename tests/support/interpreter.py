"""The device that Triton's kernels are tested on: a GPU where there is one, else the interpreter on the CPU."""

from typing import Any

import torch
from triton.runtime import interpreter

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
patch_tensor = interpreter._patch_lang_tensor


def patch_tensor_for_numpy_2_4(tensor: Any, scope: Any) -> None:
    """Triton 3.6's interpreter calls int() on arrays of one element, which NumPy 2.4 refuses."""
    patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = patch_tensor_for_numpy_2_4
