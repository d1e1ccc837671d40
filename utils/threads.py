"""Makes idle OpenMP threads sleep soon; import before PyTorch.

A training iteration is a few dozen short parallel regions. By default libgomp's
threads spin for milliseconds between and inside them, waiting for each other. As
soon as anything else wants a core (a second run, a browser), a spinning thread
uses up the time slice that the thread it waits for would need: on 2 cores under
a load of 6 we measured 4 iterations a second spinning and 51 sleeping at once.
Sleeping at once costs a fifth of the speed of an idle machine, though. A short
spin, some tens of microseconds, has the best of both.

The variables are read once, when the OpenMP runtime is loaded with PyTorch; a
user's own setting wins.
"""

from __future__ import annotations

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
