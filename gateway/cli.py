"""`gateway generate`: the smallest client. Text goes to stdout as it comes, everything else to stderr."""

import asyncio
import os
import sys
from typing import Any, Final

import click
from google.protobuf.json_format import MessageToJson

from gateway.client import (
    RESUME_SECONDS,
    CallError,
    Chunk,
    Client,
    DeadlineExpired,
    InvalidRequest,
    Unreachable,
)
from holdfast.v1 import generate_pb2 as pb

EXIT: Final = ((InvalidRequest, 1), (Unreachable, 4), (DeadlineExpired, 5), (CallError, 1))
INTERRUPTED: Final = 130


@click.command()
@click.argument("prompt")
@click.option("--max-tokens", type=click.IntRange(1), help="tokens to generate [the rest of the context]")
@click.option("--temperature", type=float, help="0 is greedy [1.0]")
@click.option("--top-p", type=float, help="[1.0]")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="[drawn by the server]")
@click.option("--stop", multiple=True, help="a stop string; may be given several times")
@click.option("--chat", is_flag=True, help="send the prompt as a user's message, through the chat template")
@click.option("--timeout", type=float, help="deadline in seconds [none]")
@click.option(
    "--resume-timeout",
    type=click.FloatRange(0),
    default=RESUME_SECONDS,
    show_default=True,
    help="seconds to take up a broken stream again; 0: never",
)
@click.option("--target", default="127.0.0.1:50051", show_default=True, help="host:port of the gateway")
@click.option("--api-key", envvar="HOLDFAST_API_KEY", help="[$HOLDFAST_API_KEY]")
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line instead of text")
def generate(
    prompt: str, target: str, api_key: str | None, chat: bool, as_json: bool, **options: Any
) -> None:
    """Streams a continuation of PROMPT.

    Exit codes: 0 ok, 1 error, 2 usage, 4 unreachable, 5 deadline, 130 interrupted.
    """
    given: Any = [{"role": "user", "content": prompt}] if chat else prompt
    options["stop"] = list(options["stop"])
    try:
        asyncio.run(stream(given, target, api_key, as_json, options))
    except CallError as error:
        click.echo(f"error: {error} ({error.reason or error.code.name})", err=True)
        sys.exit(next(code for kind, code in EXIT if isinstance(error, kind)))
    except KeyboardInterrupt:  # the generation ended with its call
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our stdout went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


async def stream(
    prompt: Any, target: str, api_key: str | None, as_json: bool, options: dict[str, Any]
) -> None:
    async with Client(target, api_key) as client:
        async for chunk in client.generate(prompt, on_retry=say_retry, on_resume=say_resume, **options):
            show(chunk, as_json)


def say_retry(error: Unreachable, attempt: int, attempts: int) -> None:
    click.echo(f"{error}; trying again ({attempt} of {attempts})", err=True)


def say_resume(error: CallError, seconds: float) -> None:
    click.echo(f"\n{error}; trying for {seconds:g} s to get the rest", err=True)


def show(chunk: Chunk, as_json: bool) -> None:
    if as_json:
        click.echo(MessageToJson(chunk.message, preserving_proto_field_name=True, indent=None))
        return
    sys.stdout.write(chunk.text)
    sys.stdout.flush()
    if chunk.finish is not None:
        sys.stdout.write("\n")
        sys.stdout.flush()
        click.echo(usage_line(chunk.finish), err=True)


def usage_line(finish: pb.Finish) -> str:
    usage, times = finish.usage, finish.timings
    rate = f", {(usage.completion_tokens - 1) / times.decode:.1f} tokens/s" if times.decode > 0 else ""
    return (
        f"[{pb.FinishReason.Name(finish.reason).removeprefix('FINISH_REASON_').lower()}: "
        f"{usage.prompt_tokens} prompt tokens ({usage.cached_tokens} cached), {usage.completion_tokens} generated, "
        f"first after {times.ttft:.2f} s{rate}, seed {finish.seed}]"
    )
