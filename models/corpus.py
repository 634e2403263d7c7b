"""The training text: generated in parallel, made into a tokenizer and packed into tokens."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SPECIALS = ["<|bos|>", "<|eos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
BOS, EOS, PAD, END = 0, 1, 2, 6
_ROOT = Path(__file__).resolve().parent.parent


def _write_shard(path: Path, seed: int, count: int) -> Path:
    command = [sys.executable, "-m", "models.stories", "--seed", str(seed)]
    with path.open("w") as out:
        subprocess.run([*command, "--count", str(count)], stdout=out, check=True, cwd=_ROOT)
    return path


def generate(folder: Path, seed: int, documents: int, shards: int, workers: int = 1) -> list[Path]:
    """Generate the documents as shards, so many at a time; the text depends on the shards alone."""
    folder.mkdir(parents=True, exist_ok=True)
    # Threads only wait here: each shard is written by a generator process of its own.
    with ThreadPoolExecutor(workers) as pool:
        jobs = [
            pool.submit(_write_shard, folder / f"{seed + i}.jsonl", seed + i, documents // shards)
            for i in range(shards)
        ]
        return [job.result() for job in jobs]


def read(path: Path) -> list[str]:
    """Read the documents of a shard."""
    with path.open() as lines:
        return [str(json.loads(line)) for line in lines]


def _plain(texts: list[str]) -> Iterator[str]:
    """Documents without the chat marks, which are tokens of their own and need no merges."""
    for text in texts:
        yield from re.split(r"<\|\w+\|>", text)


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer that puts the beginning-of-text token first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_plain(texts), trainer)
    bos = SPECIALS[BOS]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, BOS)]
    )
    return tokenizer


def encode(tokenizer: Tokenizer, paths: list[Path]) -> NDArray[np.uint16]:
    """Encode shards to one run of tokens, each document between <|bos|> and <|eos|>."""
    parts: list[NDArray[np.uint16]] = []
    for path in paths:
        texts = read(path)
        for start in range(0, len(texts), 2048):
            batch = tokenizer.encode_batch_fast(texts[start : start + 2048])
            ids = [token for one in batch for token in (*one.ids, EOS)]
            parts.append(np.array(ids, dtype=np.uint16))
    return np.concatenate(parts)
