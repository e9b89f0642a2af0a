"""Runs a service's module so that it cannot outlive the process that started it.

Started by `services.local.process` as `python -m services.local.child MODULE`. The parent holds the
other end of standard input and never writes to it; the end of that pipe means that the parent is
gone, however it went, SIGKILL included. The service is then asked to drain. A pipe works on every
system and survives threads; Linux's PR_SET_PDEATHSIG would fire when the starting thread ends.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

_DRAIN_TIMEOUT_S = 60.0
"""Nobody is left to kill a service that does not drain; after this it ends itself."""


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_DRAIN_TIMEOUT_S)
    os._exit(1)


def main() -> None:
    """Run the module named by the first argument as `__main__`."""
    module = sys.argv.pop(1)
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
