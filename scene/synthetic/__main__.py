"""`python -m scene.synthetic OUT`: the command's old and lasting name; see `synthetic.__main__`."""

from synthetic.__main__ import main
from utils.errors import run_script

if __name__ == "__main__":
    run_script(main)
