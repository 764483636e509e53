"""What every run of tests has, whichever tests they are."""

import signal

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.support.beside"]

# A shell ignores it for what runs in the background, and so would each program that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is what the other processes of this machine leave of it, and says nothing of what
# is tested: by default one of 200 ms fails its test, and so does drawing examples slowly.
settings.register_profile("beside", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("beside")
