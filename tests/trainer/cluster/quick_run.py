"""Stands in for `services.trainer.run` where training is not the point: no torch, same manners.

It says in the status file that it runs, tells the service through the run's own channel, and ends
with the number in the file `end` of its output; SIGTERM ends it with 143.
"""

import sys
import time
from pathlib import Path

import yaml

from services.trainer.run.reporting import RunReport, StepLosses
from services.trainer.run.stopping import StopFlag
from services.trainer.run.telling import telling

_ENDS = {0: ("succeeded", None), 42: ("refused", "BAD_INPUT")}


def main() -> int:
    stop = StopFlag()
    stop.listen()
    output = Path(yaml.safe_load(Path(sys.argv[1]).read_text())["output"])
    with telling() as tell:
        report = RunReport(output, tell=tell)
        losses = StepLosses(
            step=3, loss=0.5, instance_loss=0.5, prior_loss=0.25, learning_rate=1e-4
        )
        report.update(state="running", step=3, step_count=9, losses=losses, eta_s=6.0)
        while not stop.is_set:
            if (output / "end").is_file():
                exit_code = int((output / "end").read_text())
                state, reason = _ENDS.get(exit_code, ("failed", "INTERNAL"))
                report.update(state=state, reason=reason, step=9)
                return exit_code
            time.sleep(0.02)
        report.update(state="stopped")
    return 143


if __name__ == "__main__":
    sys.exit(main())
