"""A capture and its avatar."""

from scene.avatar import Avatar, load_avatar

__all__ = ["Avatar", "load_avatar"]
