"""Settings of `gateway serve`."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from gateway.auth import is_loopback
from holdfast.settings import Common


class GatewaySettings(Common):
    """Section `gateway`."""

    model: Path = Field(description="Hugging Face folder of the model: tokenizer and chat template")
    served_model_name: str = Field(
        "", max_length=128, description="name in requests; empty: the folder's name"
    )
    host: str = Field(
        "127.0.0.1", description="address to listen on; other than loopback only with --api-keys"
    )
    port: int = Field(50051, ge=0, le=65535, description="TCP port; 0: any free one, told in the log")
    api_keys: Path | None = Field(
        None, description="file of `tenant sha256hex` lines; without it: one tenant"
    )
    max_concurrent: int = Field(256, ge=1, le=65536, description="Generate calls at a time")
    max_queue: int = Field(1024, ge=1, le=65536, description="sequences that wait for their first token")
    worker_wait: float = Field(10.0, ge=0, le=600, description="seconds a request waits for a worker")
    shutdown_grace: float = Field(30.0, ge=0, le=3600, description="seconds running streams get on SIGTERM")

    @property
    def model_name(self) -> str:
        return self.served_model_name or self.model.resolve().name

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @model_validator(mode="after")
    def _private_without_keys(self) -> Self:
        if self.api_keys is None and not is_loopback(self.host):
            raise ValueError(f"listening on {self.host} needs --api-keys FILE: anybody could connect")
        return self

    @model_validator(mode="after")
    def _model_is_a_folder(self) -> Self:
        if not self.model.is_dir():
            raise ValueError(f"--model {self.model} is not a folder")
        return self
