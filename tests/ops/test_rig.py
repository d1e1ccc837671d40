"""The rig: a triangle worked out by hand, rigid motion, finite differences, and the native kernel against float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from ops import kernels, rig
from ops.rotations import matrix_to_quaternion, quaternion_multiply

needs_native = pytest.mark.skipif(not kernels.available(), reason="the native library cannot be built here")


def scipy_matrix(quats: torch.Tensor) -> np.ndarray:
    """[N, 4] wxyz to [N, 3, 3]."""
    return Rotation.from_quat(quats.detach().numpy()[..., [1, 2, 3, 0]]).as_matrix()


def scene(
    count: int = 50, vertices: int = 30, faces: int = 40, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """The five differentiable inputs of `bind` (vertices, xyz, rotation, scaling, opacity), faces and binding."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    inputs = [randn(vertices, 3) * 0.1, randn(count, 3), randn(count, 4), randn(count, 3) * 0.5, randn(count, 1)]
    triangles = torch.stack([torch.randperm(vertices, generator=generator)[:3] for _ in range(faces)])
    return inputs, triangles, torch.randint(faces, (count,), generator=generator)


def test_triangle_by_hand() -> None:
    """A right triangle with legs 4 and 3 in the plane z = 1."""
    vertices = torch.tensor([[0.0, 0, 1], [4, 0, 1], [0, 3, 1]])
    frames = rig.triangle_frames(vertices, torch.tensor([[0, 1, 2]]))
    torch.testing.assert_close(frames.origin, torch.tensor([[4 / 3, 1, 1]]))
    # First edge along x, normal along z, third axis x cross z = -y.
    torch.testing.assert_close(frames.rotation[0].T, torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]))
    torch.testing.assert_close(frames.scale, torch.tensor([3.5]))
    np.testing.assert_allclose(scipy_matrix(frames.quat)[0], frames.rotation[0], atol=1e-6)

    root = math.sqrt(0.5)
    means, quats, scales, opacities = rig.bind(
        vertices,
        torch.tensor([[0, 1, 2]]),
        torch.tensor([[1.0, 2, 3]]),
        torch.tensor([[2.0, 0, 0, 0]]),
        torch.tensor([[0.0, math.log(2), 0]]),
        torch.tensor([[0.0]]),
        torch.tensor([0]),
    )
    # 3.5 * (1, -3, 2) + origin
    torch.testing.assert_close(means, torch.tensor([[3.5 + 4 / 3, -9.5, 8]]))
    # The frame itself is a quarter turn about x.
    torch.testing.assert_close(quats * quats[:, :1].sign(), torch.tensor([[root, root, 0, 0]]))
    torch.testing.assert_close(scales, torch.tensor([[3.5, 7, 3.5]]))
    torch.testing.assert_close(opacities, torch.tensor([0.5]))


def test_frames_are_proper_rotations() -> None:
    (vertices, *_), faces, _ = scene(vertices=300, faces=500)
    frames = rig.triangle_frames(vertices, faces)
    identity = torch.eye(3, dtype=torch.float64).expand(500, 3, 3)
    torch.testing.assert_close(frames.rotation.transpose(1, 2) @ frames.rotation, identity)
    torch.testing.assert_close(torch.linalg.det(frames.rotation), torch.ones(500, dtype=torch.float64))
    np.testing.assert_allclose(scipy_matrix(frames.quat), frames.rotation, atol=1e-12)
    # The normal is perpendicular to both edges, and height and length come from the area.
    edges = vertices[faces[:, 1:]] - vertices[faces[:, :1]]
    assert (edges @ frames.rotation[:, :, 1:2]).abs().max() < 1e-12
    length = edges[:, 0].norm(dim=1)
    area = torch.linalg.cross(edges[:, 0], edges[:, 1]).norm(dim=1)
    torch.testing.assert_close(frames.scale, (length + area / length) / 2)


@pytest.mark.parametrize(
    "vector",
    [[0.0, 0, 0], [math.pi, 0, 0], [0, math.pi, 0], [0, 0, math.pi], [2.0, 2.0, 0.1], [1e-4, 0, 0], [0, -3.1, 0.2]],
)
def test_matrix_to_quaternion(vector: list[float]) -> None:
    """Each of the four branches, value and gradient (along rotations, where the function is defined)."""
    start = torch.from_numpy(Rotation.from_rotvec(vector).as_matrix())
    quaternion = matrix_to_quaternion(start)
    np.testing.assert_allclose(scipy_matrix(quaternion[None])[0], start, atol=1e-12)

    def turned(angles: torch.Tensor) -> torch.Tensor:
        x, y, z = angles
        zero = torch.zeros_like(x)
        skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)
        return matrix_to_quaternion(torch.linalg.matrix_exp(skew) @ start)

    gradient = torch.autograd.functional.jacobian(turned, torch.zeros(3, dtype=torch.float64))
    # A small turn w changes q by (0, w)/2 * q.
    for axis in range(3):
        turn = torch.zeros(4, dtype=torch.float64)
        turn[axis + 1] = 0.5
        torch.testing.assert_close(gradient[:, axis], quaternion_multiply(turn, quaternion), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rigid_motion_of_the_mesh_moves_the_gaussians(dtype: torch.dtype) -> None:
    (vertices, xyz, rotation, scaling, opacity), faces, binding = scene(dtype=dtype)
    turn = Rotation.from_rotvec([0.3, -1.2, 0.8])
    matrix, shift = torch.from_numpy(turn.as_matrix()).to(dtype), torch.tensor([1.0, -2.0, 0.5], dtype=dtype)
    before = rig.bind(vertices, faces, xyz, rotation, scaling, opacity, binding)
    after = rig.bind(vertices @ matrix.T + shift, faces, xyz, rotation, scaling, opacity, binding)
    tolerance = 1e-9 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(after[0], before[0] @ matrix.T + shift, atol=tolerance, rtol=0)
    np.testing.assert_allclose(scipy_matrix(after[1]), matrix.numpy() @ scipy_matrix(before[1]), atol=tolerance)
    torch.testing.assert_close(after[2], before[2], atol=tolerance, rtol=0)
    torch.testing.assert_close(after[1].norm(dim=1), torch.ones(50, dtype=dtype))


def test_gradients_by_finite_differences() -> None:
    inputs, faces, binding = scene(count=6, vertices=8, faces=5)
    inputs = [value.requires_grad_() for value in inputs]
    assert torch.autograd.gradcheck(
        lambda v, x, r, s, o: rig.bind(v * 10, faces, x, r, s, o, binding), inputs, atol=1e-5
    )


def run(
    inputs: list[torch.Tensor], faces: torch.Tensor, binding: torch.Tensor, cotangents: list[torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    inputs = [value.detach().clone().requires_grad_() for value in inputs]
    out = rig.bind(*inputs[:1], faces, *inputs[1:], binding)
    torch.autograd.backward(out, [c.to(inputs[0].dtype) for c in cotangents])
    return [value.detach() for value in out], [value.grad for value in inputs]


def cotangents(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randn(count, *shape, generator=generator) for shape in ((3,), (4,), (3,), ())]


@needs_native
def test_native_against_float64() -> None:
    inputs, faces, binding = scene(count=3000, vertices=150, faces=280, dtype=torch.float32)
    inputs[2][5] = 0.0  # a quaternion without direction
    # Keep away from near-collinear triangles, where float32 itself has no answer.
    corners = inputs[0][faces]
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    sine = torch.linalg.cross(first, second).norm(dim=1) / (first.norm(dim=1) * second.norm(dim=1))
    faces = faces[sine > 0.1]
    binding = binding % len(faces)
    got = run(inputs, faces, binding, cotangents(3000))
    want = run([value.double() for value in inputs], faces, binding, cotangents(3000))
    for values, exact in zip(got, want):
        for value, reference in zip(values, exact):
            assert value.dtype == torch.float32 and value.shape == reference.shape
            torch.testing.assert_close(
                value.double(), reference, rtol=1e-4, atol=1e-5 * min(1.0, reference.abs().max().item())
            )


@needs_native
def test_native_repeats_with_any_number_of_threads() -> None:
    inputs, faces, binding = scene(count=2000, vertices=100, faces=170, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(inputs, faces, binding, cotangents(2000)))
    finally:
        torch.set_num_threads(before)
    for out, gradients in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(out + gradients, results[0][0] + results[0][1]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_degenerate_triangles(dtype: torch.dtype) -> None:
    """A point, a repeated corner (each way) and a straight line, beside a good triangle."""
    vertices = torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0.3, 0, 0]], dtype=dtype)
    faces = torch.tensor([[0, 1, 2], [0, 1, 3], [3, 0, 1], [0, 3, 3], [0, 5, 3], [0, 3, 4]])
    binding = torch.arange(6)
    (_, xyz, rotation, scaling, opacity), *_ = scene(count=6, dtype=dtype)
    out, gradients = run([vertices, xyz, rotation, scaling, opacity], faces, binding, cotangents(6))
    assert all(value.isfinite().all() for value in out + gradients)
    torch.testing.assert_close(out[1].norm(dim=1), torch.ones(6, dtype=dtype))
    frames = rig.triangle_frames(vertices, faces)
    torch.testing.assert_close(frames.scale, torch.tensor([0, 0, 0.5, 0.5, 0.15, 1.0], dtype=dtype))
    torch.testing.assert_close(frames.rotation[:5], torch.eye(3, dtype=dtype).expand(5, 3, 3))
    # The good triangle's vertex still gets its gradient; that of a point is the origin's share alone.
    assert gradients[0][4].abs().sum() > 0
    lonely, _ = (
        run([vertices, xyz[:1], rotation[:1], scaling[:1], opacity[:1]], faces, binding[:1], cotangents(1)),
        None,
    )
    torch.testing.assert_close(lonely[1][0][2], (cotangents(1)[0][0] / 3).to(dtype))
