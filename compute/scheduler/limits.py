"""The bounds a scheduler works within. Plain data, checked by the process's settings."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int
    num_blocks: int  # of the pool
    eos_ids: frozenset[int]
    vocab_size: int
    max_waiting: int = 1024
    prefix_caching: bool = True

    @property
    def max_running(self) -> int:
        """Sequences open at once: each of them can have a token in every step."""
        return min(self.max_num_seqs, self.max_num_batched_tokens)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)
