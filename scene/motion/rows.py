"""A motion: poses of a head over time, and what is done to one before it is played.

A pose is a row [D] as in `scene.flame.parameters`: expression, rotation, neck, jaw, eyes, translation. Rotations are
axis-angle in radians, with which no arithmetic is right beyond small angles: here it is done on rotations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.interpolate import CubicHermiteSpline, PchipInterpolator
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation, RotationSpline

from scene.flame.parameters import row_columns

Array = np.ndarray

FPS = 25.0  # rows a second, where nobody says


class Still(NamedTuple):
    """A row that is worth a picture of its own."""

    row: int
    label: str = ""


@dataclass(frozen=True)
class Motion:
    """Poses over time."""

    name: str  # for names of files
    rows: Array  # [T, D] float64
    fps: float | None = None  # rows a second; None: nobody knows, a row is a frame
    stills: tuple[Still, ...] = ()  # none: any row is as good as another
    notes: tuple[str, ...] = field(default=(), kw_only=True)  # what a user may not expect, a sentence each

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def columns(self) -> dict[str, slice]:
        """The columns of each parameter."""
        return row_columns(self.rows.shape[1] - row_columns(0)["translation"].stop)

    def smoothed(self, seconds: float, fps: float) -> Motion:
        """With the jitter of a tracker taken out by a Gaussian over time, of this standard deviation.

        It looks as far ahead as back, so nothing comes late. Rotations are averaged as quaternions; before the first
        and behind the last row those go on.

        Args:
            fps: rows a second, where the motion does not know.
        """
        width = seconds * (self.fps or fps)
        if width == 0 or len(self) < 2:
            return self

        def average(values: Array) -> Array:
            return gaussian_filter1d(values, width, axis=0, mode="nearest")

        rows = self.rows.copy()
        for part in linear_parts(self.columns):
            rows[:, part] = average(rows[:, part])
        for part in joints(self.columns):
            quats = Rotation.from_rotvec(rows[:, part]).as_quat()
            # q and -q are one rotation: each in the half of the one before.
            signs = np.sign((quats[1:] * quats[:-1]).sum(axis=1))
            quats[1:] *= np.cumprod(np.where(signs == 0, 1.0, signs))[:, None]
            rows[:, part] = Rotation.from_quat(average(quats)).as_rotvec()
        return dataclasses.replace(self, rows=rows)

    def scaled(self, factor: float, rest: Array) -> Motion:
        """With face and neck `factor` times as far from the pose `rest` [D]; the place of the head stays as it is."""
        if factor == 1.0:
            return self
        rows, columns = self.rows.copy(), self.columns
        rows[:, columns["expr"]] = rest[columns["expr"]] + factor * (rows[:, columns["expr"]] - rest[columns["expr"]])
        for part in joints(columns):
            if part != columns["rotation"]:
                start = Rotation.from_rotvec(rest[part])
                turn = (start.inv() * Rotation.from_rotvec(rows[:, part])).as_rotvec()
                rows[:, part] = (start * Rotation.from_rotvec(factor * turn)).as_rotvec()
        return dataclasses.replace(self, rows=rows)

    def relative(self, own_rest: Array, rest: Array) -> Motion:
        """The same changes, but from the pose `rest` [D] instead of from `own_rest` [D], of another person.

        Rotations are taken in the frame of the joint, and the head moves as seen from the head, so the two captures may
        have different worlds.
        """
        rows, columns = self.rows.copy(), self.columns
        expr = columns["expr"]
        rows[:, expr] += rest[expr] - own_rest[expr]
        for part in joints(columns):
            turn = Rotation.from_rotvec(own_rest[part]).inv() * Rotation.from_rotvec(rows[:, part])
            rows[:, part] = (Rotation.from_rotvec(rest[part]) * turn).as_rotvec()
        place, head = columns["translation"], columns["rotation"]
        there = Rotation.from_rotvec(rest[head]) * Rotation.from_rotvec(own_rest[head]).inv()
        rows[:, place] = rest[place] + there.apply(rows[:, place] - own_rest[place])
        return dataclasses.replace(self, rows=rows)

    def at_rate(self, fps: float) -> Motion:
        """With `fps` rows a second, interpolated; as it is where the motion does not know its own rate."""
        if self.fps is None or self.fps == fps or len(self) < 2:
            return dataclasses.replace(self, fps=fps)
        times = np.arange(len(self)) / self.fps
        # The last row may fall between two frames; rounding keeps whole numbers of frames whole.
        wanted = np.arange(int(round(times[-1] * fps, 6)) + 1) / fps
        rows = between(times, self.rows, np.minimum(wanted, times[-1]))
        stills = tuple(
            still._replace(row=min(round(still.row * fps / self.fps), len(rows) - 1)) for still in self.stills
        )
        return dataclasses.replace(self, rows=rows, fps=fps, stills=stills)

    def rest(self) -> int:
        """The row that looks most like the face at rest: nearest to the median of expression and jaw over all rows.

        Distances are in standard deviations of each column. A talking face is at rest more often than anywhere else.
        """
        face = self.rows[:, np.r_[self.columns["expr"], self.columns["jaw_pose"]]]
        spread = face.std(axis=0)
        distance = np.abs(face - np.median(face, axis=0)) / np.where(spread > 0, spread, 1.0)
        return int(distance.sum(axis=1).argmin())


def joints(columns: dict[str, slice]) -> list[slice]:
    """The columns of each rotation; the eyes have one each."""
    eyes = columns["eyes_pose"].start
    named = [columns[name] for name in ("rotation", "neck_pose", "jaw_pose")]
    return [*named, slice(eyes, eyes + 3), slice(eyes + 3, eyes + 6)]


def linear_parts(columns: dict[str, slice]) -> list[slice]:
    """The columns of what is no rotation."""
    return [columns["expr"], columns["translation"]]


def between(times: Array, rows: Array, wanted: Sequence[float] | Array) -> Array:
    """[len(wanted), D]: the poses at moments between the rows [T, D], which are those of the ascending `times` [T].

    What is no rotation goes by PCHIP, which never overshoots: a lid that shuts does not go through the eye. Rotations
    go by SciPy's `RotationSpline`, whose angular velocity and acceleration are continuous. Before the first and behind
    the last moment the pose stays.
    """
    moments = np.clip(np.asarray(wanted, dtype=np.float64), times[0], times[-1])
    if len(times) == 1:
        return np.repeat(rows, len(moments), axis=0)
    columns = row_columns(rows.shape[1] - row_columns(0)["translation"].stop)
    result = np.empty((len(moments), rows.shape[1]))
    for part in linear_parts(columns):
        result[:, part] = PchipInterpolator(times, rows[:, part], axis=0)(moments)
    for part in joints(columns):
        result[:, part] = RotationSpline(times, Rotation.from_rotvec(rows[:, part]))(moments).as_rotvec()
    return result


def catmull_rom(times: Array, points: Array) -> CubicHermiteSpline:
    """The Catmull-Rom spline for uneven times through `points` [T, C]; T is at least 2.

    The tangent at a point is the slope of the parabola through it and its neighbors; at an end, of the line.
    """
    steps = np.diff(times)[:, None]
    slopes = np.diff(points, axis=0) / steps
    tangents = np.concatenate([slopes[:1], slopes])
    tangents[1:-1] = (slopes[:-1] * steps[1:] + slopes[1:] * steps[:-1]) / (steps[:-1] + steps[1:])
    return CubicHermiteSpline(times, points, tangents, axis=0)
