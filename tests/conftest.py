"""What all tests share: the same examples in every run, no clock, and one thread.

Tensors are small here: a second thread only waits for the first, and much longer on a machine that others use too.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; processes that tests start inherit it

from hypothesis import HealthCheck, settings

settings.register_profile(
    "attnlab", deadline=None, derandomize=True, max_examples=100, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("attnlab")
