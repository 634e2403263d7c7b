"""Which model this is: a SHA-256 of architecture and weights. Two workers share KV blocks only if it is equal.

    SHA-256 of    "holdfast model 1" · architecture (sorted JSON) · weights

Weights are, for safetensors below FULL_BYTES in all, every byte of every file; above, each file's header (names,
shapes, offsets) and SAMPLES pieces of each tensor's bytes, so that a start stays quick: a fine-tune changes every
tensor, and a change that no sample touches is not told apart. Dummy weights are their seed. The dtype in which keys
and values are kept is part of the pool's geometry.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from compute.model_config import ModelConfig
from compute.weights import WeightsError, shard_paths

FULL_BYTES: Final = 2**30
MAX_HEADER_BYTES: Final = 100 * 2**20  # safetensors' own bound
SAMPLES: Final = 4
SAMPLE_BYTES: Final = 1024
NOT_ARCHITECTURE: Final = ("eos_ids", "dtype", "max_model_len")  # change no key and no value


def fingerprint(folder: Path, load_format: str, seed: int, *, full_bytes: int = FULL_BYTES) -> bytes:
    """32 bytes. WeightsError if the folder has no weights; dummy weights are known by their seed."""
    parts = [b"holdfast model 1", architecture(ModelConfig.from_folder(folder))]
    if load_format == "dummy":
        parts += [b"dummy", str(seed).encode()]
    else:
        paths = shard_paths(folder)
        whole = sum(path.stat().st_size for path in paths) < full_bytes
        parts += [hash_file(path) if whole else hash_samples(path) for path in paths]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def architecture(config: ModelConfig) -> bytes:
    """Canonical text of all that changes a key or a value."""
    fields = {key: value for key, value in asdict(config).items() if key not in NOT_ARCHITECTURE}
    return json.dumps(fields, sort_keys=True).encode()


def hash_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def hash_samples(path: Path) -> bytes:
    """The header and evenly spread pieces of each tensor."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= MAX_HEADER_BYTES:
            raise WeightsError(f"{path} is no safetensors file: header of {size} bytes")
        header = file.read(size)
        digest.update(header)
        for begin, end in tensor_ranges(path, header):
            span = max(end - begin - SAMPLE_BYTES, 0)
            for piece in range(SAMPLES):
                file.seek(8 + size + begin + span * piece // (SAMPLES - 1))
                digest.update(file.read(min(SAMPLE_BYTES, end - begin)))
    return digest.digest()


def tensor_ranges(path: Path, header: bytes) -> list[tuple[int, int]]:
    """[begin, end) of each tensor's bytes after the header, by name."""
    try:
        entries: dict[str, Any] = json.loads(header)
        ranges = [entries[name]["data_offsets"] for name in sorted(entries) if name != "__metadata__"]
        return [(int(begin), int(end)) for begin, end in ranges]
    except (ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"{path} has a malformed header: {error!r}") from None
