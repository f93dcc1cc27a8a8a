"""Settings for all tests."""

import os

# The models of the tests are tiny, and two workers share two cores: threads of torch would wait
# for each other, which takes three times the processor time. Before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import HealthCheck, settings

# Repeatable draws; a busy machine is no failure.
settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")
