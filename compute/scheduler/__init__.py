"""Which sequences run in the next step, and what the daemon and the gateways are told afterwards.

Pure policy: calls in, plans and messages out. No torch, no sockets, no protobuf, no clock (times come as
`now_ns`). One step, as its caller drives it:

    submit / cancel / opened / granted / revoke / …   inputs, between steps
    plan(now)          → StepPlan or None              what to compute
    orders()           → OpenOrAdopt, Grant, Release   sent before the step, so that no step waits for them
    advance(plan, …)   → Outcome                       the step's Commit, what may be shown once it is recorded
    settle(now)        → Outcome                       the same when there is nothing to compute
"""

from compute.scheduler.limits import Limits
from compute.scheduler.outcome import Ended, Outcome, Rejection, TokenEvent
from compute.scheduler.progress import Progress
from compute.scheduler.scheduler import Scheduler

__all__ = ["Ended", "Limits", "Outcome", "Progress", "Rejection", "Scheduler", "TokenEvent"]
