"""What holds for all tests."""

from hypothesis import settings

# A deadline of a single example says more about the machine than about the code; pytest-timeout
# bounds the whole test. What decides whether a change lands tries the same cases each time: a
# failure is then of the change. New cases are tried with `pytest --hypothesis-profile=explore`
# (and by `make zoo`); a failing one becomes an @example.
settings.register_profile("pipelinejob", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.register_profile("nightly", deadline=None, max_examples=1000)  # see support/examples.py
settings.register_profile("zoo", deadline=None)  # what `make zoo` asks for: all of tests/trainer/models/test_zoo.py
settings.load_profile("pipelinejob")
