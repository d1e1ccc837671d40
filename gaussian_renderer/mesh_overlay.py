"""The head mesh, shaded and half transparent, over a rendering: shows how well the tracking fits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ops.types import Camera
from utils.errors import UserError

MESH_COLOR = (0.42, 0.60, 0.95)  # a blue that no skin has


def visible_faces(vertices: Tensor, faces: Tensor, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Casts a ray through the centre of every pixel.

    Args:
        vertices: [V, 3] world space, metres.
        faces: [F, 3] integer.
        camera: the view.

    Returns:
        face: [H, W] int, the nearest triangle in front of the camera, -1 for none.
        facing: [H, W] float, cosine between that triangle's normal and the ray, 0..1
            (either side of the triangle; 0 where there is none).

    Raises:
        UserError: embreex is not installed.
    """
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene
    except ImportError:
        raise UserError("the mesh overlay needs ray casting: pip install embreex") from None

    # In camera space the rays start at the origin, where float32 is most exact.
    pose = camera.world_to_camera.detach().cpu().double().numpy()
    points = vertices.detach().cpu().double().numpy() @ pose[:3, :3].T + pose[:3, 3]
    triangles = np.ascontiguousarray(points[faces.cpu().numpy()], dtype=np.float32)

    x = (np.arange(camera.width) + 0.5 - camera.cx) / camera.fx
    y = (np.arange(camera.height) + 0.5 - camera.cy) / camera.fy
    rays = np.ones((camera.height, camera.width, 3), dtype=np.float32)
    rays[..., 0] = x[None, :]
    rays[..., 1] = y[:, None]
    rays = rays.reshape(-1, 3)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)

    scene = EmbreeScene()
    TriangleMesh(scene, triangles)
    face = scene.run(np.zeros_like(rays), rays, query="INTERSECT")

    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)
    facing = np.abs((normals[face] * rays).sum(axis=1)) * (face >= 0)
    shape = (camera.height, camera.width)
    return face.reshape(shape), facing.astype(np.float32).reshape(shape)


def draw_mesh(image: Tensor, vertices: Tensor, faces: Tensor, camera: Camera, opacity: float = 0.6) -> Tensor:
    """Blends the mesh, lit from the camera, over `image`.

    Args:
        image: [3, H, W] float 0..1, of the camera's size.
        vertices: [V, 3] world space, metres.
        faces: [F, 3] integer.
        camera: the view.
        opacity: of the mesh, 0..1.

    Returns:
        [3, H, W] on the device of `image`; pixels outside the mesh are untouched.
    """
    face, facing = visible_faces(vertices, faces, camera)
    light = torch.from_numpy(0.25 + 0.75 * facing).to(image)
    color = torch.tensor(MESH_COLOR).to(image)[:, None, None] * light
    hit = torch.from_numpy(face >= 0).to(image.device)
    return torch.where(hit, torch.lerp(image, color, opacity), image)
