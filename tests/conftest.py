"""Settings of the whole test run.

Tests draw tiny tensors: one thread each is faster than the coordination of several, and several
processes of the suite share the machine. No test depends on how fast that machine is.
"""

import os

from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("limner", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("limner")
