"""The one model a gateway serves: its name, its text codec and template, and what the fleet says of its limits."""

from dataclasses import dataclass
from pathlib import Path

import grpc

from gateway import bounds
from gateway.chat import ChatTemplate
from gateway.errors import Refusal, invalid
from gateway.routing import Members
from gateway.tokenizer import TextCodec, no_tokenizer
from holdfast.v1 import generate_pb2 as pb


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Raises Refusal for names and inputs it cannot serve."""

    name: str
    codec: TextCodec | None
    template: ChatTemplate | None

    @classmethod
    def from_folder(cls, folder: Path, name: str) -> "ServedModel":
        """ValueError when a file in the folder cannot be used."""
        return cls(name, TextCodec.from_folder(folder), ChatTemplate.from_folder(folder))

    def check_name(self, name: str) -> None:
        if name not in {"", self.name}:
            raise Refusal(
                grpc.StatusCode.NOT_FOUND,
                "MODEL_NOT_FOUND",
                "no such model; see ListModels",
                {"field": "model"},
            )

    def text_codec(self) -> TextCodec:
        if self.codec is None:
            raise no_tokenizer()
        return self.codec

    async def encode_text(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return await self.text_codec().encode(text, add_special_tokens)

    async def encode_chat(self, chat: pb.ChatPrompt) -> list[int]:
        """The template writes its own special tokens."""
        codec = self.text_codec()
        if self.template is None:
            raise Refusal(
                grpc.StatusCode.FAILED_PRECONDITION, "NO_CHAT_TEMPLATE", "the model has no chat template"
            )
        messages = [{"role": message.role, "content": message.content} for message in chat.messages]
        opened = not chat.HasField("add_generation_prompt") or chat.add_generation_prompt
        return await codec.encode(await self.template.render(messages, opened), add_special_tokens=False)

    async def prompt(self, request: pb.GenerateRequest) -> list[int]:
        """The token ids of a checked request's prompt."""
        match request.WhichOneof("prompt"):
            case "text":
                return await self.encode_text(request.text)
            case "chat":
                return await self.encode_chat(request.chat)
            case _:
                return list(request.token_ids.ids)

    def listed(self, members: Members) -> list[pb.Model]:
        """The model, if a worker serves it now."""
        pools = {worker.pool for worker in members.ready(self.name)}
        return [
            pb.Model(
                name=pool.model,
                max_model_len=pool.max_model_len,
                dtype=pool.dtype,
                vocab_size=pool.vocab_size,
                fingerprint=pool.fingerprint,
            )
            for name, pool in sorted(members.pools.items())
            if name in pools
        ]


def page(items: list[pb.Model], request: pb.ListModelsRequest) -> pb.ListModelsResponse:
    """One page; a token is the number of items before it."""
    if request.page_size < 0:
        raise invalid("page_size", f"{request.page_size} is negative")
    token = request.page_token
    if token and not (token.isascii() and token.isdecimal() and len(token) <= 9):
        raise invalid("page_token", "not a next_page_token of this server")
    first, size = int(token or 0), min(request.page_size or bounds.DEFAULT_PAGE, bounds.MAX_PAGE)
    rest = first + size < len(items)
    return pb.ListModelsResponse(
        models=items[first : first + size], next_page_token=str(first + size) if rest else ""
    )
