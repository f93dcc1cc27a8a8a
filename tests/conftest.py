"""Settings for all tests."""

from hypothesis import HealthCheck, settings

# Repeatable draws; a busy machine is no failure.
settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")
