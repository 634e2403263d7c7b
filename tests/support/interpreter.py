"""The device that Triton's kernels are tested on: a GPU where there is one, else the interpreter on the CPU."""

from typing import Any

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import interpreter

FLOATS = {
    tl.float32: (torch.float32, torch.int32),
    tl.float16: (torch.float16, torch.int16),
    tl.bfloat16: (torch.bfloat16, torch.int16),
    tl.float8e4nv: (torch.float8_e4m3fn, torch.uint8),
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
convert_float = interpreter._convert_float
patch_tensor = interpreter._patch_lang_tensor


def patch_tensor_for_numpy_2_4(tensor: Any, scope: Any) -> None:
    """Triton 3.6's interpreter calls int() on arrays of one element, which NumPy 2.4 refuses."""
    patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


def convert_float_with_e4m3(values: NDArray[Any], source: Any, target: Any, rounding: Any) -> NDArray[Any]:
    """Triton 3.6's interpreter reads e4m3's NaN as 480 and rounds 31.6 to 16; torch and the GPU do not."""
    if tl.float8e4nv not in {source, target}:
        return convert_float(values, source, target, rounding)  # type: ignore[no-any-return]
    (kind, bits), (to_kind, to_bits) = FLOATS[source], FLOATS[target]
    stored = np.ascontiguousarray(values).view(str(bits).removeprefix("torch."))
    exact = torch.from_numpy(stored).view(kind).float()
    if target == tl.float8e4nv:
        exact = exact.clamp(-448.0, 448.0)
    found = exact.to(to_kind).view(to_bits).numpy().reshape(values.shape)
    return found.view(f"uint{target.primitive_bitwidth}")


interpreter._patch_lang_tensor = patch_tensor_for_numpy_2_4
interpreter._convert_float = convert_float_with_e4m3
