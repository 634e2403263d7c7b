"""Which models the GPU's kernels take, said before anything is loaded."""

from compute.kernels.gpu.layer import BLOCK_SIZES, HEAD_DIMS
from compute.model_config import ModelConfig
from kvmanager.errors import Invalid, Unimplemented

DTYPES = ("bfloat16", "float16")


def check_supported(config: ModelConfig, dtype: str, block_size: int) -> None:
    """Invalid or Unimplemented with the flag that helps."""
    if dtype not in DTYPES:
        raise Invalid(
            f"--dtype {dtype}: a GPU serves {' and '.join(DTYPES)}; --device cpu takes it", field="dtype"
        )
    if block_size not in BLOCK_SIZES:
        sizes = ", ".join(map(str, BLOCK_SIZES))
        raise Invalid(f"--block-size {block_size}: on a GPU one of {sizes}", field="block_size")
    if config.head_dim not in HEAD_DIMS:
        sizes = ", ".join(map(str, HEAD_DIMS))
        raise Unimplemented(f"head_dim {config.head_dim}: the GPU's kernels take {sizes}; use --device cpu")
