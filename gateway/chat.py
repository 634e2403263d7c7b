"""The model's chat template, rendered in a sandbox with limits on time and size.

The template comes from the model's folder, never from a request; still it is somebody else's program. Every turn of a
loop and every piece of output passes a `Meter`, and repetition, powers and sums of long values are refused.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import grpc
import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gateway.errors import Refusal

MAX_TEMPLATE_BYTES: Final = 2**20
MAX_RENDERED_CHARACTERS: Final = 4 * 2**20
MAX_SECONDS: Final = 2.0
TOKENS: Final = ("bos_token", "eos_token", "unk_token", "pad_token")
METER: Final = "__holdfast_meter__"
WIDTHS: Final = re.compile(r"[0-9]+", re.ASCII)


class TemplateError(ValueError):
    """The template refused the messages, or went over a limit."""


class Meter:
    """Time and output of one rendering."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deadline = clock() + MAX_SECONDS
        self._characters = 0

    def turn(self) -> None:
        if self._clock() > self._deadline:
            raise TemplateError(f"the chat template took longer than {MAX_SECONDS:g} s")

    def output(self, piece: str) -> str:
        self.turn()
        self._characters += len(piece)
        if self._characters > MAX_RENDERED_CHARACTERS:
            raise TemplateError(f"the chat template gave more than {MAX_RENDERED_CHARACTERS} characters")
        return piece


_METER: ContextVar[Meter] = ContextVar("chat template meter")


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for training; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, with a meter in every loop and bounds on operators that make long values."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            call = nodes.Call(nodes.Name(METER, "load"), [], [], None, None)
            loop.body.insert(0, nodes.ExprStmt(call, lineno=loop.lineno))
        return tree.set_environment(self)  # type: ignore[return-value]

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or bounded(operator, left, right) > MAX_RENDERED_CHARACTERS:
            raise SecurityError(f"the operator {operator} is limited in chat templates")
        return super().call_binop(context, operator, left, right)


def bounded(operator: str, left: Any, right: Any) -> int:
    """The length of the value that `operator` would make; 0 for numbers."""
    if operator == "%":
        return sum(map(int, WIDTHS.findall(left))) if isinstance(left, str) else 0
    sizes = [len(side) if isinstance(side, str | list | tuple) else None for side in (left, right)]
    if operator == "+":
        return sum(size or 0 for size in sizes)
    times = [side for side in (left, right) if isinstance(side, int)]
    return max((size * times[0] for size in sizes if size and times), default=0)


class ChatTemplate:
    """One compiled template. `render` is safe to call from several tasks."""

    def __init__(self, source: str, tokens: dict[str, str]) -> None:
        if len(source.encode()) > MAX_TEMPLATE_BYTES:
            raise ValueError(f"chat template of more than {MAX_TEMPLATE_BYTES} bytes")
        environment = Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, GenerationTag]
        )
        environment.filters["tojson"] = to_json
        environment.globals |= {"raise_exception": refuse, "strftime_now": strftime_now, METER: turn}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"chat template, line {error.lineno}: {error.message}") from None
        self._tokens = tokens

    @classmethod
    def from_folder(cls, folder: Path) -> "ChatTemplate | None":
        """chat_template.jinja, else tokenizer_config.json's; None when the model has neither."""
        config = read_json(folder / "tokenizer_config.json")
        path = folder / "chat_template.jinja"
        source = path.read_text("utf8") if path.exists() else default_template(config.get("chat_template"))
        if source is None:
            return None
        given = read_json(folder / "special_tokens_map.json") | config
        return cls(source, {name: token_text(given[name]) for name in TOKENS if given.get(name)})

    async def render(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
        """The prompt's text; Refusal INVALID_ARGUMENT with the template's own words if it refuses."""
        try:
            return await asyncio.to_thread(self._render, messages, add_generation_prompt)
        except (TemplateError, jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError,
                AttributeError, RecursionError) as error:  # fmt: skip
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                "CHAT_TEMPLATE_FAILED",
                f"chat: the model's chat template refused the messages: {str(error)[:300]}",
                {"field": "chat"},
                "chat",
            ) from None

    def _render(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
        meter = Meter()
        _METER.set(meter)
        pieces: Iterator[str] = self._template.generate(
            messages=list(messages),
            add_generation_prompt=add_generation_prompt,
            tools=None,  # templates ask whether these are none, not whether they are defined
            documents=None,
            **self._tokens,
        )
        return "".join(meter.output(piece) for piece in pieces)


def turn() -> None:
    _METER.get().turn()


def refuse(message: str) -> None:
    raise TemplateError(message)


def strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: jinja2's own filter escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`, {} if there is no such file; ValueError if it holds anything else."""
    if not path.exists():
        return {}
    found = json.loads(path.read_text("utf8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return found


def default_template(given: Any) -> str | None:
    """`chat_template` is a string, or a list of named ones of which "default" counts."""
    if isinstance(given, list):
        given = next((item["template"] for item in given if item.get("name") == "default"), None)
    return given if isinstance(given, str) else None


def token_text(given: Any) -> str:
    """A special token is a string, or an object with its content."""
    return str(given["content"] if isinstance(given, dict) else given)
