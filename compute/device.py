"""Where this worker computes: the CPU or which GPU, and how much device memory it will need beside its pool.

The daemon sets that need aside before it sizes the pool, so it is an estimate from the model's shapes, made before
anything is loaded. Nothing here makes a CUDA context.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from compute.model.hf_config import Rope
from compute.model_config import ModelConfig
from kvmanager.errors import Unavailable
from kvmanager.gpu_driver import CudaDriver, Driver

PACKAGES: Final = ("cuda.bindings", "triton")
ITEMSIZE: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
CONTEXT_BYTES: Final = 2**30  # the CUDA context, loaded kernels, captured graphs
LOGIT_BYTES: Final = 2 + 3 * 4 + 8 + 4  # of a vocabulary entry: logits, their float32 working copies, a sort
MARGIN: Final = 0.05
MIN_POSITIONS: Final = 1024  # rows of a rotary table


def resolve(device: str) -> str:
    """`cpu` or `cuda`: what --device auto means on this machine. Unavailable for a GPU that cannot be served here."""
    missing = [package for package in PACKAGES if not installed(package)]
    if device == "auto":
        return "cuda" if has_gpu() and not missing else "cpu"
    if device == "cuda" and not has_gpu():
        raise Unavailable("--device cuda: this machine has no NVIDIA GPU (no /dev/nvidia0)")
    if device == "cuda" and missing:
        raise Unavailable(f"--device cuda: {missing[0]} is not installed: pip install 'holdfast[cuda]'")
    return device


def installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even its package
        return False


def has_gpu() -> bool:
    """Whether the kernel's driver shows any; says nothing of CUDA_VISIBLE_DEVICES, and loads no library."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def uuid_of(kind: str, driver: Driver | None = None) -> str:
    """What an attachment calls this worker's device: `cpu`, or the UUID of the first visible GPU.

    Unavailable if there is none. Starts the driver, so call it once the attachment is connected.
    """
    if kind == "cpu":
        return kind
    devices = (driver or CudaDriver()).devices()
    if not devices:
        raise Unavailable("--device cuda: no GPU is visible (CUDA_VISIBLE_DEVICES)")
    return devices[0]


# ---------------------------------------------------------------------------------------------- memory


def parameters(config: ModelConfig) -> int:
    """How many numbers the model's weights are."""
    embedding = config.vocab_size * config.hidden_size
    head = 0 if config.tied else embedding
    return embedding + head + config.num_layers * layer_parameters(config) + config.hidden_size


def layer_parameters(config: ModelConfig) -> int:
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    matrices = hidden * (q + 2 * kv) + q * hidden + 3 * hidden * inner
    norms = hidden * (4 if config.family.post_norms else 2)
    norms += 2 * config.head_dim if config.family.qk_norm else 0
    biases = (q + 2 * kv) * config.qkv_bias + hidden * config.output_bias
    return matrices + norms + biases + (2 * inner + hidden) * config.mlp_bias


def peak_bytes(
    config: ModelConfig, dtype: str, *, max_num_seqs: int, max_num_batched_tokens: int, max_model_len: int
) -> int:
    """Device memory of a worker beside the pool, at most: weights, one step's work, the context, and a margin."""
    itemsize = ITEMSIZE[dtype]
    weights = parameters(config) * itemsize
    activations = max_num_batched_tokens * activation_width(config) * itemsize
    logits = max_num_seqs * config.vocab_size * LOGIT_BYTES
    rotary = rotary_bytes(config.ropes, config.head_dim, max_model_len)
    return int((weights + activations + logits + rotary) * (1 + MARGIN)) + CONTEXT_BYTES


def activation_width(config: ModelConfig) -> int:
    """Numbers that one token of a step keeps at once: the residual and its norm, and the wider half of a layer."""
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention = 2 * q + 2 * kv + q  # merged projection, what was attended
    mlp = 3 * config.intermediate_size  # gate and up, their product
    return 3 * config.hidden_size + max(attention, mlp)


def rotary_bytes(ropes: tuple[Rope, ...], head_dim: int, positions: int) -> int:
    """Cosines and sines, float32, of each kind of layer; a table that grows is twice what was asked for."""
    return len(set(ropes)) * max(2 * positions, MIN_POSITIONS) * head_dim * 2 * 4
