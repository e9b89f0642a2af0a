"""Settings of the whole test run.

Tests draw tiny tensors: one thread each is faster than the coordination of several, and several
processes of the suite share the machine.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
