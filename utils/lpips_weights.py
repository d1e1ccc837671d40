"""`python -m utils.lpips_weights`: the command's old and lasting name; see `evaluation.lpips_weights`."""

from evaluation.lpips_weights import main
from utils.errors import run_script

if __name__ == "__main__":
    run_script(main)
