"""What the figures in doc/ are made with: each module is a command, `python -m benchmarks.NAME --help`."""

import utils.threads  # noqa: F401  (before PyTorch: sets how its threads wait)
