"""Makes idle OpenMP threads sleep soon and the first results of PyTorch exact; import before PyTorch.

A training iteration is a few dozen short parallel regions. By default libgomp's threads spin for milliseconds between
and inside them, waiting for each other. As soon as anything else wants a core, a spinning thread uses up the time
slice that the thread it waits for would need, and training is ten times slower; sleeping at once costs a fifth of the
speed of an idle machine. A short spin, some tens of microseconds, has the best of both. The variables are read once,
when the OpenMP runtime is loaded with PyTorch; a user's own setting wins.

PyTorch's `log`, `exp` and `logit` go through MKL's vector mathematics, which looks for the processor's abilities at
its first call. When two threads make that first call at once, one may compute with a less exact variant, and runs
that must repeat bit for bit go apart. One call by one thread, before any other, settles it.

Numbers below 1e-38 (denormals) cost a processor many times what others do, and a training makes them wherever
something decays to nothing: the moments of Adam, weights under a penalty. They become zero instead. Threads inherit
that from the one that starts them, so it has to be said before there are any.
"""

from __future__ import annotations

import os
import sys

from utils import environment

sys.excepthook = environment.explain_missing_package

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import torch  # noqa: E402

torch.set_flush_denormal(True)
for _first_call in (torch.exp, torch.log, torch.logit):
    _first_call(torch.full((1,), 0.5))
