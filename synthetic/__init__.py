"""A procedural head: its model and a rendered capture of it, in the formats of real ones.

Nothing is downloaded and everything is deterministic by seed. The parts:
`shape` (the form), `layout` and `mesh` (its triangles), `modes` (identity, expression,
skinning), `model` (the FLAME layout), `texture` and `hair` (the paint),
`render` (ray casting), `motion` and `capture` (the data set).
"""

from __future__ import annotations

from synthetic.capture import make_capture
from synthetic.model import make_head_model

__all__ = ["make_capture", "make_head_model"]
