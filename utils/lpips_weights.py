"""`python -m utils.lpips_weights`: the command's old and lasting name; see `evaluation.lpips_weights`."""

import utils.threads  # noqa: F401  (before PyTorch: sets how its threads wait)

# isort: split
from evaluation.lpips_weights import main
from utils.errors import run_script

if __name__ == "__main__":
    run_script(main)
