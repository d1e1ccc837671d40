"""The head: a FLAME-format model, its parameters over time, and the function from one to the other's vertices."""

from scene.flame.head_model import HeadModel, find_head_model, load_head_model
from scene.flame.model import Flame
from scene.flame.parameters import FlameParameters

__all__ = ["Flame", "FlameParameters", "HeadModel", "find_head_model", "load_head_model"]
