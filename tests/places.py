"""Where the tests find things."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CAPTURE = ROOT.parent / "shared" / "heads" / "ict_a"  # a real capture, on some machines
