"""What holds for all tests."""

from hypothesis import settings

# A deadline of a single example says more about the machine than about the code; pytest-timeout bounds the whole test.
settings.register_profile("pipelinejob", deadline=None)
settings.load_profile("pipelinejob")
