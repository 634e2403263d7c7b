"""Text to token ids and back, with the model folder's tokenizer.json. No chat, no stop strings.

Long texts are encoded in a thread, two at a time; short ones in place.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import grpc
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from gateway.errors import Refusal

IN_PLACE_CHARACTERS: Final = 4096  # about 1 ms
CONTEXT_IDS: Final = 6  # of the prompt, so that the first token of the output keeps its leading space
# No character spans more tokens than it has bytes (4); a longer wait is malformed output, which would make each
# step of DecodeStream decode all of it again.
MAX_HELD_IDS: Final = 16
REPLACEMENT: Final = "\ufffd"


class TextCodec:
    """The tokenizer of one model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._anchor = self._find_anchor()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="tokenizer")

    @classmethod
    def from_folder(cls, folder: Path) -> "TextCodec | None":
        """None when the folder has no tokenizer.json; ValueError when it cannot be read."""
        path = folder / "tokenizer.json"
        if not path.exists():
            return None
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception
            raise ValueError(f"cannot read {path}: {error}") from None

    def _find_anchor(self) -> list[int]:
        """An id whose text is plain ASCII; [] if the vocabulary has none."""
        texts = ((token_id, self.decode([token_id])) for token_id in range(self.vocab_size))
        return next(([token_id] for token_id, text in texts if text.isascii() and text.isalnum()), [])

    @property
    def vocab_size(self) -> int:
        """Added tokens included."""
        return int(self._tokenizer.get_vocab_size())

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`, with the special tokens that the model's tokenizer puts around a prompt."""
        if len(text) <= IN_PLACE_CHARACTERS:
            return self._encode(text, add_special_tokens)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._encode_apart, text, add_special_tokens)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def _encode_apart(self, text: str, add_special_tokens: bool) -> list[int]:
        """As `_encode`, but without the interpreter lock: only the batch call lets go of it."""
        ids: list[int] = self._tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    async def decode_long(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """As `decode`, in a thread when there is much of it."""
        if len(ids) <= IN_PLACE_CHARACTERS:
            return self.decode(ids, skip_special_tokens)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._decode_apart, ids, skip_special_tokens)

    def _decode_apart(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        texts = self._tokenizer.decode_batch([list(ids)], skip_special_tokens=skip_special_tokens)
        return str(texts[0])

    def stream(self, prompt: Sequence[int], skip_special_tokens: bool) -> "Detokenizer":
        """An incremental decoder of what follows `prompt`."""
        return Detokenizer(self._tokenizer, self._anchor, prompt, skip_special_tokens)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class Detokenizer:
    """Text of one index, token by token; incomplete UTF-8 is held back.

    begin (not shown) | shown ids ...... | held ids ...
                                         ^ the last piece of text ended here

    `anchor` is an id of plain text, so that what follows it is no beginning: some decoders strip a first space.
    """

    def __init__(
        self, tokenizer: Tokenizer, anchor: list[int], prompt: Sequence[int], skip_special_tokens: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._anchor = anchor
        self._skip = skip_special_tokens
        self._held: list[int] = []
        self._restart(self._tail(prompt))

    def _tail(self, prompt: Sequence[int]) -> list[int]:
        """The prompt's last ids, unless their text ends within a character."""
        ids = list(prompt[-CONTEXT_IDS:])
        return self._anchor if self._decode(ids).endswith(REPLACEMENT) else ids

    def _restart(self, begin: list[int]) -> None:
        self._begin, self._held = begin, []
        self._stream = DecodeStream(ids=begin, skip_special_tokens=self._skip)

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes, perhaps none."""
        self._held.append(token_id)
        try:
            piece: str | None = self._stream.step(self._tokenizer, token_id)
        except Exception:  # noqa: BLE001 - tokenizers raises plain Exception when malformed bytes change shown text
            return self.flush()
        if piece is None:
            return self.flush() if len(self._held) > MAX_HELD_IDS else ""
        self._begin, self._held = self._anchor, []
        return piece

    def flush(self) -> str:
        """The text of the held ids as it is, incomplete characters as U+FFFD; then starts afresh."""
        if not self._held:
            return ""
        text = self._decode(self._begin + self._held)[len(self._decode(self._begin)) :]
        self._restart(self._anchor)
        return text

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=self._skip)) if ids else ""


def no_tokenizer() -> Refusal:
    return Refusal(
        grpc.StatusCode.FAILED_PRECONDITION,
        "NO_TOKENIZER",
        "the model has no tokenizer.json: send token_ids, and read token_ids",
    )
