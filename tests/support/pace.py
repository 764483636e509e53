"""How fast this machine is at the moment, for limits that are to be reached, and not too early."""

from __future__ import annotations

import math
import time

from tests.support.msb import Msb


def seconds(msb: Msb, *, least: int, runs: int = 2) -> int:
    """A limit of a sandbox: `least` seconds, or, on a machine as busy as this one is now, the time that so
    many runs of a sandbox take, so that what a test does before the limit is done by then."""
    begun = time.monotonic()
    msb.run("true").succeeded()
    return max(least, math.ceil(runs * (time.monotonic() - begun)))
