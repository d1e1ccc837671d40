"""An avatar in a few small arrays of integers, as the page's `data.js` reads them.

The file is a gzip stream of: the length of the header (uint32, little endian), the header (JSON), and the arrays that
it lists, in order. Integers are stored as planes: the lowest bytes of all values, then the next. An array marked
`delta` holds the difference of each row to the one before.

What a value stands for is an integer times a step, so no value is off by more than half a step:

    value                                        step, `high`   step, `small`
    mean of a Gaussian, in triangle units        1/512          1/128
    logarithm of a deviation                     1/64           1/16
    the three smaller quaternion components      1/512          1/128
    opacity                                      1/255          1/127
    constant color coefficient                   1/256          1/64        (x 0.28 in the color)
    its modes, which follow the expression       1/1024         1/256       (x 0.28 and the code)
    other color coefficients                     1/128          1/16        (x 0.3 to 1.1 in the color, each)
    displacement by a mode in full use, meters   20e-6          200e-6
    expression in the motion, of full use        1/500          1/100
    poses in the motion, radians                 0.0002         0.001
    translation in the motion, meters            20e-6          100e-6
    vertices of the identity, meters; weights    largest / 32767

Full use of a mode is its largest coefficient in the motion, and at least 1. A mode, or a pose corrective, that moves
no vertex by more than `Steps.visible` then is left out, if it hardly changes the colors either. So are Gaussians that
no rasterizer draws (an opacity under 1/255, a quaternion of length 0, an infinite deviation), and triangles that carry
none.

A step grows where a value would not fit 16 bits: of an array's mean, a static scene's above all. The header says the
step of every array.
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from innovations.color_calibration import RESIDUAL_LIMIT
from innovations.expression_appearance import ExpressionCode
from ops.kernels import CONSTANTS
from scene import Avatar
from utils.errors import UserError

LEVEL = 6  # of gzip: 9 takes fifteen times as long for files 3 % smaller
_LARGEST_LOGARITHM = 88.0  # of a deviation that is finite as float32
MOST_GAUSSIANS = 1_000_000  # a page with more neither loads nor moves in a browser


class Steps(NamedTuple):
    """What the integers count; see the module's text."""

    mean: float
    scale: float
    rotation: float
    opacity: float
    color: float
    change: float
    harmonics: float
    displacement: float
    expression: float
    pose: float
    translation: float
    visible: float  # meters
    deviation: float  # of the code that mixes the colors


QUALITIES = {
    "high": Steps(
        1 / 512, 1 / 64, 1 / 512, 1 / 255, 1 / 256, 1 / 1024, 1 / 128, 20e-6, 1 / 500, 2e-4, 20e-6, 50e-6, 0.01
    ),
    "small": Steps(
        1 / 128, 1 / 16, 1 / 128, 1 / 127, 1 / 64, 1 / 256, 1 / 16, 200e-6, 1 / 100, 1e-3, 100e-6, 300e-6, 0.05
    ),
}


class Arrays:
    """The arrays of a file, and what its header says about them."""

    def __init__(self) -> None:
        self.listed: list[dict[str, Any]] = []
        self.parts: list[bytes] = []

    def add(self, name: str, values: np.ndarray, step: float | list[float] = 1.0, *, delta: bool = False) -> None:
        """`values`: integers, or float32 as they are; `delta` along the first axis."""
        about = {"name": name, "shape": list(values.shape), "step": step, "delta": delta}
        if values.dtype == np.float32:
            about["type"] = "f32"
            self.parts.append(values.astype("<f4").tobytes())
        else:
            stored = np.diff(values, axis=0, prepend=0) if delta else values
            # The sums are taken in the type of the array, so that must hold them, and not only the differences.
            largest = max((int(np.abs(each).max(initial=0)) for each in (values, stored)), default=0)
            width = next(width for width in (1, 2, 4) if largest < 1 << (8 * width - 1))
            about["type"] = f"i{8 * width}"
            planes = stored.astype(f"<i{width}").reshape(-1, 1).view(np.uint8)
            self.parts.append(np.ascontiguousarray(planes.T).tobytes())
        self.listed.append(about)

    def rounded(self, name: str, values: np.ndarray, step: float, *, delta: bool = False) -> None:
        """Numbers as multiples of `step`, or of a larger one where 16 bits do not reach that far."""
        step = max(step, float(np.abs(values).max(initial=0)) / 32767) or 1.0
        self.add(name, np.rint(values / step).astype(np.int64), step, delta=delta)

    def file(self, header: dict[str, Any]) -> bytes:
        """The whole file; the same arrays give the same bytes."""
        text = json.dumps({**header, "arrays": self.listed}, separators=(",", ":")).encode()
        return gzip.compress(b"".join([struct.pack("<I", len(text)), text, *self.parts]), LEVEL, mtime=0)


class Life(NamedTuple):
    """What moves a head."""

    rows: np.ndarray  # [T, D] the motion
    names: Sequence[str]  # of the first expressions; they label the sliders
    blink: np.ndarray | None = None  # [D] what closes the eyes, added to a row


def pack(avatar: Avatar, steps: Steps, header: dict[str, Any], life: Life | None) -> tuple[bytes, dict[str, int]]:
    """The file, and what was kept: gaussians, expressions.

    Args:
        header: what else the page shall find there.
        life: of an avatar that has a head.

    Raises:
        UserError: more Gaussians than a browser shows.
    """
    arrays = Arrays()
    header["rules"] = {
        "near": CONSTANTS["kNear"],
        "lowPass": CONSTANTS["kLowPass"],
        "guard": CONSTANTS["kGuard"],
        "minAlpha": CONSTANTS["kMinAlpha"],
        "maxAlpha": CONSTANTS["kMaxAlpha"],
        "residualLimit": RESIDUAL_LIMIT,
        "minEdge": CONSTANTS["kMinEdge"],
        "minSine": CONSTANTS["kMinSine"],
    }
    used = _gaussians(avatar, steps, arrays)
    kept = {"gaussians": arrays.listed[0]["shape"][0], "expressions": 0}
    if avatar.head is not None and life is not None:
        header["modes"] = _head(avatar, steps, used, arrays, life)
        kept["expressions"] = len(header["modes"])
        header["parents"] = list(avatar.head.parents)
        header["correctives"] = _correctives(avatar, steps, used, arrays)
        columns = avatar.motion().columns
        _motion(life.rows, columns, header["modes"], steps, arrays)
        # A row of the page: the expressions that it has, poses, translation.
        order = [columns["expr"].start + mode["index"] for mode in header["modes"]]
        order += range(columns["expr"].stop, columns["translation"].stop)
        if avatar.model.expression is not None:
            header["code"] = _code(avatar.model.expression, life.rows, order)
        if life.blink is not None:
            header["blink"] = life.blink[order].tolist()
    network = getattr(avatar.color, "network", None)
    if network is not None:
        header["network"] = {"hidden": network.hidden_dim, "layers": network.num_layers}
        weights = torch.cat([weight.detach().flatten() for weight in network.parameters()])
        arrays.add("network", weights.cpu().numpy().astype(np.float32))
    return arrays.file(header), kept


def _gaussians(avatar: Avatar, steps: Steps, arrays: Arrays) -> np.ndarray:
    """Adds the Gaussians, ordered by their triangle; returns the triangles that carry some [f]."""
    model = avatar.model
    fields = {name: value.detach().cpu().double().numpy() for name, value in model.fields().items()}
    binding = np.zeros(len(model), np.int64) if model.binding is None else model.binding.cpu().numpy()
    opacity = 1 / (1 + np.exp(-fields["opacity"][:, 0]))
    length = np.linalg.norm(fields["rotation"], axis=1)
    drawn = (opacity >= CONSTANTS["kMinAlpha"]) & (length >= CONSTANTS["kMinLength"])
    rows = np.flatnonzero(drawn & (fields["scaling"].max(1) < _LARGEST_LOGARITHM))
    rows = rows[np.argsort(binding[rows], kind="stable")]
    if not len(rows):
        raise UserError(f"{avatar.path}: no Gaussian is opaque enough to be seen")
    if len(rows) > MOST_GAUSSIANS:
        raise UserError(f"{avatar.path} has {len(rows):,} Gaussians; a page shows up to {MOST_GAUSSIANS:,}")
    used, triangles = np.unique(binding[rows], return_inverse=True)
    rotation = fields["rotation"][rows] / length[rows, None]
    largest = np.abs(rotation).argmax(1)
    rotation *= np.where(np.take_along_axis(rotation, largest[:, None], 1) < 0, -1, 1)  # q and -q turn alike
    smaller = rotation[np.arange(4) != largest[:, None]].reshape(-1, 3)
    degree = model.active_sh_degree
    color = np.concatenate([fields["features_dc"], fields["features_rest"][:, : (degree + 1) ** 2 - 1]], axis=1)[rows]

    arrays.add("triangles", triangles, delta=True)
    arrays.rounded("means", fields["xyz"][rows], steps.mean)
    arrays.rounded("scales", fields["scaling"][rows], steps.scale)
    arrays.add("largest", largest)
    arrays.rounded("rotations", smaller, steps.rotation)
    arrays.rounded("opacities", opacity[rows], steps.opacity)
    # The step of the constant coefficient, and that of the others, where 16 bits reach that far.
    sizes = [
        max(step, float(np.abs(part).max(initial=0)) / 32767)
        for step, part in ((steps.color, color[:, :1]), (steps.harmonics, color[:, 1:]))
    ]
    per_coefficient = np.where(np.arange(color.shape[1]) == 0, *sizes)[:, None]
    arrays.add("harmonics", np.rint(color / per_coefficient).astype(np.int64), sizes)
    if model.modes is not None:
        arrays.rounded("changes", model.modes.detach().cpu().double().numpy()[rows], steps.change)
    return used


def _code(expression: ExpressionCode, rows: np.ndarray, order: list[int]) -> dict[str, list]:
    """What makes of a row of the page the code of the moment: `directions` [K][row] and `start`, `low`, `high` [K].

    What the page leaves out of a row stays as it mostly is in the motion.
    """
    mean, directions, low, high = (value.cpu().numpy() for value in expression)
    usual = rows.mean(0)
    usual[order] = 0.0
    return {
        "directions": directions[order].T.tolist(),
        "start": ((usual - mean) @ directions).tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
    }


def _vertices(avatar: Avatar, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vertices [v] that the triangles `used` have, and these triangles [f, 3] in terms of them."""
    assert avatar.head is not None
    corners, faces = np.unique(avatar.head.faces.numpy()[used], return_inverse=True)
    return corners, faces.reshape(-1, 3)


def _head(avatar: Avatar, steps: Steps, used: np.ndarray, arrays: Arrays, life: Life) -> list[dict[str, Any]]:
    """Adds the identity and the expression modes; returns what is said of each mode that is kept."""
    head, motion = avatar.head, avatar.motion()
    assert head is not None
    corners, faces = _vertices(avatar, used)
    shape, offset = motion.shape.cpu().double(), motion.static_offset.cpu().double()
    base = head.v_template.double() + head.shapedirs.double() @ shape + offset
    modes = head.exprdirs.double().permute(2, 0, 1)  # [E, V, 3]
    values = torch.from_numpy(life.rows[:, motion.columns["expr"]])
    reach = values.abs().amax(0).clamp_min(1.0)
    lengths = modes[:, corners].norm(dim=2).amax(1) * reach  # meters
    seen = lengths > steps.visible
    if avatar.model.expression is not None:
        weights = avatar.model.expression.directions[motion.columns["expr"]].cpu().abs().amax(1)
        seen |= weights * values.std(0, correction=0) > steps.deviation
    kept = torch.nonzero(seen)[:, 0].tolist()

    arrays.add("faces", faces)
    arrays.rounded("base", base[corners].numpy(), 0.0)
    arrays.rounded("weights", head.weights[corners].double().numpy(), 0.0)
    regressor = head.joint_regressor.double()
    arrays.add("joints", (regressor @ base).numpy().astype(np.float32))
    joint_modes = torch.einsum("jv,evc->ejc", regressor, modes[kept])
    arrays.add("joint_modes", joint_modes.numpy().astype(np.float32))
    sizes = np.array([steps.displacement / float(reach[index]) for index in kept])
    arrays.add("modes", _displacements(modes[kept][:, corners].numpy(), sizes))
    return [
        {
            "index": index,  # in the head model
            **({"name": life.names[index]} if index < len(life.names) else {}),
            "step": size,  # meters per unit of the coefficient
            "tick": steps.expression * float(reach[index]),  # of the coefficient in the motion
            # Of its slider: what the motion uses, and a whole unit, to both sides unless it is a named action.
            "low": min(float(values[:, index].min()), 0.0 if index < len(life.names) else -1.0),
            "high": max(float(values[:, index].max()), 1.0),
            # How far the motion mostly moves the face by it, by which sliders are chosen; the unused come last.
            "strength": float(modes[index, corners].norm(dim=1).max() * (values[:, index].std(correction=0) + 1e-3)),
        }
        for index, size in zip(kept, sizes)
    ]


def _correctives(avatar: Avatar, steps: Steps, used: np.ndarray, arrays: Arrays) -> list[dict[str, Any]]:
    """Adds the pose correctives that are seen, whose features are at most about 1; returns what is said of each."""
    assert avatar.head is not None
    modes = avatar.head.posedirs.double().permute(2, 0, 1)[:, _vertices(avatar, used)[0]]
    kept = torch.nonzero(modes.norm(dim=2).amax(1) > steps.visible)[:, 0].tolist()
    arrays.add("correctives", _displacements(modes[kept].numpy(), np.full(len(kept), steps.displacement)))
    return [{"feature": feature, "step": steps.displacement} for feature in kept]


def _displacements(modes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """[E, 3 v] whole numbers of steps; UserError beyond 32 bits."""
    flat = modes.reshape(len(modes), modes.shape[1] * modes.shape[2])
    with np.errstate(invalid="ignore"):
        counted = np.rint(flat / sizes[:, None])
    if counted.size and np.abs(counted).max() >= 1 << 31:
        raise UserError("an expression of the head model moves it by kilometers: it is not in meters")
    return counted.astype(np.int64)


def _motion(
    rows: np.ndarray, columns: dict[str, slice], modes: list[dict[str, Any]], steps: Steps, arrays: Arrays
) -> None:
    """Adds the parameters over time, as differences of consecutive rows: a face moves little from one to the next."""
    kept, ticks = [mode["index"] for mode in modes], np.array([mode["tick"] for mode in modes])
    poses = np.concatenate([rows[:, columns[name]] for name in ("rotation", "neck_pose", "jaw_pose", "eyes_pose")], 1)
    arrays.add("expression", np.rint(rows[:, columns["expr"]][:, kept] / ticks).astype(np.int64), delta=True)
    arrays.rounded("poses", poses, steps.pose, delta=True)
    arrays.rounded("translation", rows[:, columns["translation"]], steps.translation, delta=True)
