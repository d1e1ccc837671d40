"""What moves an avatar without a capture: poses over time, from files or made here."""

from __future__ import annotations

from scene.motion.rows import Motion, Still, between
from scene.motion.sources import chosen_motion, load_motion

__all__ = ["Motion", "Still", "between", "chosen_motion", "load_motion"]
