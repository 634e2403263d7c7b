"""Settings of a compute worker: what `compute serve` reads."""

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from holdfast.settings import Common

DType = Literal["auto", "float32", "bfloat16", "float16"]
KVDType = Literal["auto", "float32", "bfloat16", "float16", "fp8"]


class ComputeSettings(Common):
    """One compute process."""

    model: Path = Field(description="Hugging Face folder of the model")
    served_model_name: Annotated[str, Field(max_length=128)] = Field(
        "", description="name that clients ask for; unset: the folder's name"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute")
    dtype: DType = Field("auto", description="of the weights and of the arithmetic")
    kv_cache_dtype: KVDType = Field(
        "auto", description="of keys and values: the same as --dtype, or fp8 (e4m3, with --device cuda only)"
    )
    load_format: Literal["auto", "dummy"] = Field("auto", description="dummy: random weights from --seed")
    seed: int = Field(0, ge=0, lt=2**63, description="of dummy weights")
    max_model_len: int | None = Field(
        None, ge=2, le=2**24, description="most tokens of prompt and output; unset: the model's own"
    )
    block_size: int = Field(16, ge=1, le=1024, description="token slots of a block, a power of two")
    max_num_seqs: int = Field(64, ge=1, le=4096, description="sequences computed at once")
    max_num_batched_tokens: int = Field(2048, ge=1, le=65_536, description="most tokens of one step")
    max_waiting: int = Field(1024, ge=1, le=65_536, description="requests in line; more are rejected")
    enable_prefix_caching: bool = Field(
        True, description="find the beginning of a prompt in the cache, and keep blocks there for later ones"
    )
    threads: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, le=1024, description="of the CPU's arithmetic"
    )
    worker_id: str = Field(
        "", pattern=r"^[a-z0-9-]{0,32}$", description="name of this worker; unset: drawn at each start"
    )
    attach_timeout: float = Field(
        300.0, gt=0, le=86_400, description="seconds to wait for the KV manager at the start"
    )
    reattach_timeout: float = Field(
        15.0, ge=0, le=86_400, description="seconds to wait for a KV manager that died to be started again"
    )
    gateway_ttl: float = Field(
        60.0, ge=0, le=86_400, description="seconds that the requests of a gateway that died run on"
    )
    shutdown_grace: float = Field(
        30.0, ge=0, le=86_400, description="seconds that running requests get after SIGTERM"
    )

    @field_validator("block_size")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("expected a power of two")
        return value

    @field_validator("model")
    @classmethod
    def _folder(cls, value: Path) -> Path:
        if not value.is_dir():
            raise ValueError("expected a folder")
        return value.resolve()

    @model_validator(mode="after")
    def _one_dtype(self) -> Self:
        if self.kv_cache_dtype == "fp8":
            if self.device != "cuda":
                raise ValueError(f"--kv-cache-dtype fp8 needs --device cuda, not {self.device}")
        elif self.kv_cache_dtype not in {"auto", self.dtype}:
            raise ValueError(
                f"--kv-cache-dtype {self.kv_cache_dtype} differs from --dtype {self.dtype}: not built"
            )
        return self

    def kv_dtype(self, dtype: str) -> str:
        """As the pool's geometry names it, for a model computed in `dtype`."""
        return "float8_e4m3" if self.kv_cache_dtype == "fp8" else dtype

    @property
    def model_name(self) -> str:
        return self.served_model_name or self.model.name[:128]
