"""Makes idle OpenMP threads sleep; import before PyTorch.

A training iteration is a few dozen short parallel regions. By default libgomp's
threads spin between and inside them, waiting for each other. As soon as anything
else wants a core (a second run, a browser), a spinning thread uses up the
time slice that the thread it waits for would need: on a machine with 2 cores and
a load of 6 we measured 4 iterations a second spinning and 51 sleeping.

The variables are read once, when the OpenMP runtime is loaded with PyTorch; a
user's own setting wins.
"""

from __future__ import annotations

import os

if "GOMP_SPINCOUNT" not in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
