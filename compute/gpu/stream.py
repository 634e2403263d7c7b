"""In which order a step's kernels run: a CUDA stream with its events and graphs, or none in Triton's interpreter."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import torch
from torch import Tensor

WARM_UPS: Final = 2


@dataclass(frozen=True, slots=True)
class Graph:
    """`replay` puts the body on the stream again; `output` is what it gave, overwritten by each replay."""

    replay: Callable[[], object]
    output: Tensor


class Stream(Protocol):
    def scope(self) -> AbstractContextManager[object]:
        """Within it kernels go to this stream."""
        ...

    def mark(self) -> Callable[[], object]:
        """What comes back waits for everything put on the stream so far."""
        ...

    def graph(self, body: Callable[[], Tensor]) -> Graph:
        """`body` as one launch. It is run a few times."""
        ...


class CudaStream:
    """Graphs of one stream share their memory: they never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self.stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.memory: Any = None

    def scope(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self.stream)

    def mark(self) -> Callable[[], object]:
        event: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # the waiting thread sleeps: the link's needs the interpreter
        event.record(self.stream)
        return partial(event.synchronize)

    def graph(self, body: Callable[[], Tensor]) -> Graph:
        for _ in range(WARM_UPS):  # what it compiles and allocates once must not become part of the graph
            body()
        graph = torch.cuda.CUDAGraph()
        # Other threads may use CUDA meanwhile.
        with torch.cuda.graph(graph, pool=self.memory, stream=self.stream, capture_error_mode="thread_local"):
            output = body()
        self.memory = graph.pool()
        return Graph(graph.replay, output)


class HostStream:
    """Everything is done when the call returns."""

    def scope(self) -> AbstractContextManager[object]:
        return nullcontext()

    def mark(self) -> Callable[[], object]:
        return lambda: None

    def graph(self, body: Callable[[], Tensor]) -> Graph:
        output = body()
        return Graph(lambda: output.copy_(body()), output)


def stream_of(device: torch.device) -> Stream:
    return CudaStream(device) if device.type == "cuda" else HostStream()
