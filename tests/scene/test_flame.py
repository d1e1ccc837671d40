"""FLAME against poses worked out by hand, SciPy's rotations, finite differences."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from places import CAPTURE
from scipy.spatial.transform import Rotation
from toy_head import motion_of, toy_head

from ops import kernels
from ops.flame import PackedModes
from ops.rotations import axis_angle_to_matrix
from scene.flame import Flame, FlameParameters
from scene.flame.head_model import HeadModel, load_head_model
from scene.flame.parameters import MOTION

needs_native = pytest.mark.skipif(not kernels.available(), reason="the native library cannot be built here")
HALF_PI = np.pi / 2


def stick_head() -> HeadModel:
    """Five vertices that are the five joints, and three that hang on jaw, left eye and half neck, half jaw."""
    template = torch.tensor(
        [
            [1.0, 0, 0],
            [1, 1, 0],
            [1, 2, 0],
            [2, 3, 0],
            [0, 3, 0],  # joints
            [1, 2, 1],
            [2, 3, 1],
            [1, 2, 2],
        ]
    )
    weights = torch.zeros(8, 5)
    weights[range(7), [0, 1, 2, 3, 4, 2, 3]] = 1.0
    weights[7, [1, 2]] = 0.5
    modes = torch.zeros(8, 3, 1)
    modes[5, 2, 0] = 1.0  # one expression: the chin moves forward
    return HeadModel(
        template,
        torch.tensor([[0, 1, 2]]),
        torch.zeros(8, 3, 1),
        modes,
        torch.zeros(8, 3, 36),
        torch.eye(5, 8),
        weights,
    )


def pose(head: HeadModel, static_offset: torch.Tensor | None = None, **given: list[float]) -> np.ndarray:
    """Vertices of the stick head under the given parameters, the rest zero; both paths must agree."""
    flame = Flame(head)
    widths = {"expr": head.n_expr, **MOTION}
    parts = {
        name: torch.tensor([given.get(name, [0.0] * width)], dtype=torch.float32) for name, width in widths.items()
    }
    shape = torch.zeros(head.n_shape)
    static = torch.zeros_like(head.v_template) if static_offset is None else static_offset
    batched = flame(shape, static_offset=static, **parts)[0]
    single = flame.from_row(torch.cat([part[0] for part in parts.values()]), shape, static)
    torch.testing.assert_close(single, batched, atol=1e-5, rtol=1e-5)
    return single.numpy()


def test_poses_by_hand() -> None:
    head = stick_head()
    rest = head.v_template.numpy()
    np.testing.assert_allclose(pose(head), rest, atol=1e-6)
    np.testing.assert_allclose(pose(head, translation=[1.0, 2, 3]), rest + [1, 2, 3], atol=1e-6)

    # Jaw a quarter turn about x: forward becomes down, around the jaw joint (1, 2, 0).
    jaw = pose(head, jaw_pose=[HALF_PI, 0, 0])
    np.testing.assert_allclose(jaw[:5], rest[:5], atol=1e-6)
    np.testing.assert_allclose(jaw[5], [1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(jaw[7], [1, 1, 1], atol=1e-6)  # half of (1, 2, 2) and (1, 0, 0)

    # Root a quarter turn about z, around the root joint (1, 0, 0): (x, y) -> (1 - y, x - 1).
    root = pose(head, rotation=[0, 0, HALF_PI])
    np.testing.assert_allclose(root, np.stack([1 - rest[:, 1], rest[:, 0] - 1, rest[:, 2]], 1), atol=1e-6)

    # Neck a half turn about y, around x = 1, z = 0; everything but the root hangs on it.
    neck = pose(head, neck_pose=[0, np.pi, 0])
    np.testing.assert_allclose(neck, np.stack([2 - rest[:, 0], rest[:, 1], -rest[:, 2]], 1), atol=1e-6)

    # Left eye only; and chained: the neck's half turn about y then mirrors the turned eye.
    eye = pose(head, eyes_pose=[0, HALF_PI, 0, 0, 0, 0])
    np.testing.assert_allclose(eye[6], [3, 3, 0], atol=1e-6)
    both = pose(head, eyes_pose=[0, HALF_PI, 0, 0, 0, 0], neck_pose=[0, np.pi, 0])
    np.testing.assert_allclose(both[6], [-1, 3, 0], atol=1e-6)

    # Expression comes before the pose: the chin moves forward, then down with the jaw.
    np.testing.assert_allclose(pose(head, expr=[0.5], jaw_pose=[HALF_PI, 0, 0])[5], [1, 0.5, 0], atol=1e-6)

    # An offset of the jaw joint's own vertex moves the joint, and so the axis of the chin.
    offset = torch.zeros(8, 3)
    offset[2, 1] = 1.0  # the joint is now (1, 3, 0), the chin (0, -1, 1) away from it
    np.testing.assert_allclose(pose(head, offset, jaw_pose=[HALF_PI, 0, 0])[5], [1, 2, -1], atol=1e-6)


def random_pose(head: HeadModel, batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    widths = {"shape": head.n_shape, "expr": head.n_expr, **MOTION}
    return {name: torch.randn(batch, width, generator=generator, dtype=torch.float64) for name, width in widths.items()}


def flame_numpy(head: HeadModel, static_offset: np.ndarray, **p: np.ndarray) -> np.ndarray:
    """One timestep, by 4x4 transforms and SciPy's rotations."""
    array = {
        field.name: np.asarray(getattr(head, field.name), dtype=np.float64)
        for field in dataclasses.fields(head)
        if isinstance(getattr(head, field.name), torch.Tensor)
    }
    shaped = array["v_template"] + array["shapedirs"] @ p["shape"] + array["exprdirs"] @ p["expr"] + static_offset
    joints = array["joint_regressor"] @ shaped
    turns = Rotation.from_rotvec(
        np.concatenate([p["rotation"], p["neck_pose"], p["jaw_pose"], p["eyes_pose"]]).reshape(5, 3)
    ).as_matrix()
    posed = shaped + array["posedirs"] @ np.concatenate([(turn - np.eye(3)).ravel() for turn in turns[1:]])
    chain = []
    for joint, parent in enumerate([-1, 0, 1, 1, 1]):
        about = np.eye(4)  # turn around the joint's rest position
        about[:3, :3] = turns[joint]
        about[:3, 3] = joints[joint] - turns[joint] @ joints[joint]
        chain.append(about if parent < 0 else chain[parent] @ about)
    homogeneous = np.concatenate([posed, np.ones((len(posed), 1))], axis=1)
    moved = [homogeneous @ transform.T[:, :3] for transform in chain]
    return sum(array["weights"][:, [j]] * moved[j] for j in range(5)) + p["translation"]


def test_against_scipy() -> None:
    head = toy_head(seed=3)
    poses = random_pose(head, 6)
    poses["rotation"][1] = 0
    poses["jaw_pose"][2] = torch.tensor([np.pi - 1e-7, 0, 0])
    poses["neck_pose"][3] = torch.tensor([1e-5, 2e-5, -1e-5])
    poses["eyes_pose"][4] *= 5
    static = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 3)) * 0.01)
    batched = Flame(head, dtype=torch.float64)(static_offset=static, **poses)
    single = Flame(head)  # native where it can be built
    for index in range(6):
        one = {name: value[index].numpy() for name, value in poses.items()}
        expected = flame_numpy(head, static.numpy(), **one)
        np.testing.assert_allclose(batched[index], expected, atol=1e-12)
        row = torch.cat([value[index] for name, value in poses.items() if name != "shape"]).float()
        found = single.from_row(row, poses["shape"][index].float(), static.float())
        np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_gradients_by_finite_differences(scale: float) -> None:
    """Every input of the batched forward and of the row path, also where all rotations are zero."""
    head = toy_head(vertices=9, faces=4, n_shape=2, n_expr=3)
    flame = Flame(head, dtype=torch.float64)
    poses = {name: (value * scale).requires_grad_() for name, value in random_pose(head, 2).items()}
    static = torch.zeros(9, 3, dtype=torch.float64, requires_grad=True)
    dynamic = torch.zeros(2, 9, 3, dtype=torch.float64, requires_grad=True)
    names = list(poses)
    assert torch.autograd.gradcheck(
        lambda static, dynamic, *values: flame(
            static_offset=static, dynamic_offset=dynamic, **dict(zip(names, values))
        ),
        (static, dynamic, *poses.values()),
    )
    row = torch.cat([value[0].detach() for name, value in poses.items() if name != "shape"]).requires_grad_()
    shape = poses["shape"][0].detach()
    assert torch.autograd.gradcheck(lambda row: flame.from_row(row, shape, static.detach()), (row,))


def test_small_rotations() -> None:
    """Value and gradient stay accurate across the switch between series and closed form."""
    for angle in (0.0, 1e-9, 9.9e-4, 1.01e-3, 1e-2, 3.1):
        for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 3e-7)):
            vector = torch.tensor([0.6, 0.0, -0.8], dtype=dtype) * angle
            np.testing.assert_allclose(
                axis_angle_to_matrix(vector), Rotation.from_rotvec(vector).as_matrix(), atol=tolerance
            )
        vector = torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64) * angle
        assert torch.autograd.gradcheck(axis_angle_to_matrix, (vector.requires_grad_(),))


def run_row(flame: Flame, row: torch.Tensor, cotangent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    row = row.detach().to(flame.dtype).requires_grad_()
    zeros = flame.v_template.new_zeros
    out = flame.from_row(row, zeros(flame.shapedirs.shape[2]), zeros(flame.v_template.shape))
    out.backward(cotangent.to(flame.dtype))
    return out.detach(), row.grad


@needs_native
@pytest.mark.parametrize("scale", [1.0, 0.02, 0.004, 0.0])  # 0.004: angles in the range of the series
def test_native_against_float64(scale: float) -> None:
    head = toy_head(vertices=517, n_expr=20)  # not a multiple of the block size
    head.exprdirs[100:400, :, 5:] = 0  # local modes
    head.posedirs[:200] = 0
    row = torch.randn(38, generator=torch.Generator().manual_seed(1)) * scale
    cotangent = torch.randn(517, 3, generator=torch.Generator().manual_seed(2))
    fast, exact = Flame(head), Flame(head, dtype=torch.float64)
    out, gradient = run_row(fast, row, cotangent)
    assert isinstance(fast._modes, PackedModes)
    out64, gradient64 = run_row(exact, row, cotangent)
    torch.testing.assert_close(out.double(), out64, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient.double(), gradient64, rtol=1e-5, atol=1e-6 * gradient64.abs().max().item())


@needs_native
def test_native_does_not_depend_on_threads() -> None:
    flame = Flame(toy_head(vertices=1000, n_expr=20))
    row, cotangent = torch.randn(38), torch.randn(1000, 3)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run_row(flame, row, cotangent))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0]))


def test_vertices_of_a_timestep() -> None:
    head = toy_head()
    arrays = motion_of(head)
    flame = Flame(head)
    for dynamic in (False, True):
        offset = np.zeros((4, 40, 3), dtype=np.float32)
        if dynamic:
            offset += np.random.default_rng(5).normal(size=offset.shape).astype(np.float32) * 0.01
        parameters = FlameParameters({**arrays, "dynamic_offset": offset}, [3, 5, 6, 9], head)
        assert (parameters.dynamic_offset is not None) == dynamic
        one = {name: arrays[name][2] for name in arrays if name not in ("shape", "static_offset")}
        expected = flame_numpy(head, arrays["static_offset"] + offset[2], shape=arrays["shape"], **one)
        np.testing.assert_allclose(flame.vertices(parameters, 2).detach(), expected, atol=2e-6)
    # Another identity after this one is not answered from the cache.
    other = FlameParameters({**arrays, "shape": arrays["shape"] + 1}, None, head)
    expected = flame_numpy(head, arrays["static_offset"], shape=arrays["shape"] + 1, **one)
    np.testing.assert_allclose(flame.vertices(other, 2).detach(), expected, atol=2e-6)


@pytest.mark.skipif(not (CAPTURE / "head_model.pkl").is_file(), reason="the shared capture is not here")
def test_shared_capture() -> None:
    """The tracked parameters of a real-format capture against the true ones: about 1.6 mm, as its README says."""
    head = load_head_model(CAPTURE / "head_model.pkl")
    assert (head.n_vertices, head.n_faces) == (5389, 10538) and "teeth" in head.masks

    def load(folder: str) -> dict[str, np.ndarray]:
        rows = [dict(np.load(path)) for path in sorted((CAPTURE / folder).glob("[0-9]*.npz"))]
        motion = {
            name: np.concatenate([row[name] for row in rows])
            for name in rows[0]
            if name not in ("shape", "static_offset")
        }
        return {**motion, "shape": rows[0]["shape"]}

    flame = Flame(head)
    tracked, true = (FlameParameters(load(folder), None, head) for folder in ("flame_param", "true_flame_param"))
    with torch.no_grad():
        errors = [
            (flame.vertices(tracked, t) - flame.from_row(true.row(t), tracked.shape, tracked.static_offset))
            .norm(dim=1)
            .mean()
            .item()
            for t in range(len(true))
        ]
    assert 1.2e-3 < np.mean(errors) < 2.0e-3
