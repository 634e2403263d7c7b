"""A worker that dies of a certain token, as one does of a request that trips a bug in a kernel: at the launch of any
step that computes it, without a word."""

import os
import signal

from compute.__main__ import main
from compute.plan import StepPlan
from compute.runner import Runner
from compute.worker import Landing

POISON = 77


def launch(self: Runner, plan: StepPlan) -> Landing:
    if any(POISON in row.token_ids for row in plan.rows if row.epoch):
        os.kill(os.getpid(), signal.SIGKILL)
    return healthy(self, plan)


healthy = Runner.launch
Runner.launch = launch  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
