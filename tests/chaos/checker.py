"""Judges a run: each stream against an undisturbed one, and how long each fault was felt."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

from tests.chaos.workload import Stream, Work


@dataclass(frozen=True, slots=True)
class Fault:
    """What was done, when, and to how many streams in decode at that moment."""

    kind: str
    at: float
    streams: int
    cold: bool = False  # the worker that replaced it was started from nothing


def differences(streams: Iterable[Stream], baseline: Mapping[Work, Stream]) -> list[str]:
    """One line for each stream that is not what it would have been. Empty: nothing was lost, doubled or changed."""
    found = []
    for stream in streams:
        want = baseline[stream.work]
        if stream.error:
            found.append(f"{stream.work.name}: {stream.error}")
        elif stream.tokens != want.tokens or stream.texts != want.texts or stream.reasons != want.reasons:
            found.append(f"{stream.work.name}: {where(stream, want)}")
    return found


def where(stream: Stream, want: Stream) -> str:
    for index, tokens in sorted(want.tokens.items()):
        got = stream.tokens.get(index, [])
        if got != tokens:
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(got, tokens, strict=False)))
            return f"index {index}: {len(got)} tokens for {len(tokens)}, the first {same} as they should be"
    return "its text or its reason differs"


def stalls(fault: Fault, streams: Iterable[Stream]) -> list[float]:
    """Seconds between the last token before the fault and the first after it, of every continuation that has both."""
    found = []
    for stream in streams:
        for times in stream.times.values():
            found += [b - a for a, b in pairwise(times) if a <= fault.at < b]
    return found


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def summary(faults: Sequence[Fault], streams: Sequence[Stream], least: int) -> dict[str, object]:
    """Figures of a run, by kind of fault; `least`: streams in decode that make a fault count."""
    counted = [fault for fault in faults if fault.streams >= least]
    felt: dict[str, list[float]] = {}
    for fault in counted:
        felt.setdefault(fault.kind, []).extend(stalls(fault, streams))
    return {
        "faults": dict(Counter(fault.kind for fault in faults)),
        "counted": dict(Counter(fault.kind for fault in counted)),
        "rule_of_three": {kind: round(3 / n, 4) for kind, n in Counter(f.kind for f in counted).items()},
        "stall_ms": {
            kind: {
                "p50": round(1000 * percentile(gaps, 0.5), 1),
                "p99": round(1000 * percentile(gaps, 0.99), 1),
                "max": round(1000 * max(gaps, default=0.0), 1),
                "gaps": len(gaps),
            }
            for kind, gaps in felt.items()
        },
        "worst_ms": sorted(
            (round(1000 * max(stalls(fault, streams), default=0.0)) for fault in counted), reverse=True
        )[:20],
        "cold_replacements": sum(fault.cold for fault in faults),
        "streams": len(streams),
        "tokens": sum(len(tokens) for stream in streams for tokens in stream.tokens.values()),
    }
