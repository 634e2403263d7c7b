"""What the step loop counts and measures, for heartbeats: rates, waits, totals. Decides nothing."""

from collections import deque
from dataclasses import dataclass

SMOOTHING = 0.1
WAITS_KEPT = 1024  # steps over which the 99th percentile is taken
REFRESH_STEPS = 64


@dataclass(slots=True)
class Progress:
    """Written by the step thread; single fields may be read by another thread."""

    step: int = 0
    running: int = 0
    waiting: int = 0
    float_blocks: int = 0
    tokens_per_second: float = 0.0  # decode, smoothed
    seconds_per_token: float = 0.0  # of step time, prefill included, smoothed
    seconds_per_step: float = 0.0
    steps_waited: int = 0
    wait_p99_ms: float = 0.0
    preemptions: int = 0
    replayed: int = 0  # slots computed here that a former owner may have computed, and not committed
    reprefilled: int = 0  # slots that were committed once, computed again after a fault
    prompt_tokens: int = 0
    generation_tokens: int = 0

    def launched(self, waited: bool, waits: "Waits") -> None:
        """A step starts. The percentile is taken anew when a step waited, and now and then after that."""
        self.step += 1
        self.steps_waited += waited
        if waited or (self.steps_waited and self.step % REFRESH_STEPS == 0):
            self.wait_p99_ms = waits.p99_ms()

    def measure(self, num_tokens: int, sampled: int, elapsed_ns: int) -> None:
        """A step of `num_tokens` is done."""
        seconds = max(elapsed_ns, 1) / 1e9
        self.generation_tokens += sampled
        self.seconds_per_token = smooth(self.seconds_per_token, seconds / num_tokens)
        self.seconds_per_step = smooth(self.seconds_per_step, seconds)
        if sampled:
            self.tokens_per_second = smooth(self.tokens_per_second, sampled / seconds)


class Waits:
    """How long the launch of each of the last steps was delayed by an empty float or a full send queue."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=WAITS_KEPT)
        self._since_ns: int | None = None

    def begin(self, now_ns: int) -> None:
        """Nothing can run although something should; repeated calls keep the first time."""
        if self._since_ns is None:
            self._since_ns = now_ns

    def forget(self) -> None:
        """What waited is gone: nobody waits any more."""
        self._since_ns = None

    def launch(self, now_ns: int) -> bool:
        """A step starts; whether it was delayed."""
        delayed = self._since_ns is not None
        self._recent.append(now_ns - self._since_ns if self._since_ns is not None else 0)
        self._since_ns = None
        return delayed

    def p99_ms(self) -> float:
        """Over all recent steps, those that did not wait included."""
        if not self._recent:
            return 0.0
        ordered = sorted(self._recent)
        return ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] / 1e6


def smooth(old: float, new: float) -> float:
    """An exponential moving average that starts at its first value."""
    return new if old == 0.0 else old + SMOOTHING * (new - old)
