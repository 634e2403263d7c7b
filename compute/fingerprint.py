"""Which model this is: a SHA-256 of its architecture and every byte of its weights.

Two workers share KV blocks only if this is equal, so nothing is sampled or trusted by name.
"""

import hashlib
from pathlib import Path

from compute.weights import shard_paths


def fingerprint(folder: Path, load_format: str, seed: int) -> bytes:
    """32 bytes. WeightsError if the folder has no weights; dummy weights are known by their seed."""
    parts = [b"config.json", digest(folder / "config.json")]
    if load_format == "dummy":
        parts += [b"dummy", str(seed).encode()]
    else:
        parts += [digest(path) for path in shard_paths(folder)]
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little") + part)
    return whole.digest()


def digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
