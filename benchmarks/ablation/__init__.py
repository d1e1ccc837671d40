"""What each innovation and each preset changes; see `__main__.py`."""

BASELINE = "baseline"
