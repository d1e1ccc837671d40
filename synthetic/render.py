"""Ray casting of the posed head: the ground truth of the synthetic capture.

Independent of every rasterizer here: triangles, Embree, shading in NumPy. The
picture shows a richer head than the model: subdivided and curved triangles,
fine relief, and hair strands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from synthetic import shape, texture
from synthetic.hair import Strands, grow_strands
from synthetic.mesh import EAR, EYEBALL, MOUTH, SKIN, TEETH
from synthetic.model import Head, pose_head, vertex_normals
from synthetic.wrinkles import Wrinkles, folded, make_wrinkles
from utils.errors import UserError

Array = np.ndarray

HAIR = 5  # kind of a triangle, after mesh.SKIN ... mesh.EAR


def _unit(v: tuple) -> Array:
    return (np.array(v) / np.linalg.norm(v)).astype(np.float32)


# Fixed in world space: directions towards the lights and their linear colours.
KEY, KEY_COLOR = _unit((0.50, 0.62, 0.80)), np.array([1.00, 0.97, 0.93], dtype=np.float32) * 0.90
FILL, FILL_COLOR = _unit((-0.75, 0.15, 0.65)), np.array([0.85, 0.92, 1.00], dtype=np.float32) * 0.30
RIM, RIM_COLOR = _unit((-0.45, 0.50, -0.75)), np.array([0.90, 0.95, 1.00], dtype=np.float32) * 0.35
SKY = np.array([0.46, 0.48, 0.52], dtype=np.float32)
GROUND = np.array([0.30, 0.26, 0.24], dtype=np.float32)
# How far diffuse light wraps around the terminator, per channel: blood under the skin makes it reddish.
SKIN_WRAP = np.array([0.38, 0.20, 0.15], dtype=np.float32)
SOFTNESS = 0.04  # radius of the key light as seen from the head, radians
OCCLUSION_REACH = 0.05  # metres
OCCLUSION_RAYS = 24


@dataclass(frozen=True)
class View:
    """A pinhole camera: OpenGL camera-to-world [4, 4], intrinsics in pixels."""

    camera_to_world: Array
    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int


@dataclass(frozen=True)
class Assets:
    """Everything that does not change from frame to frame; small enough to send to a worker process."""

    head: Head
    strands: Strands
    picture: Array  # [H, W, 3] uint8 albedo over the chart
    colors: texture.Palette
    vertex_color: Array  # [V', 3] linear, fine mesh
    edges: Array  # [E, 2] coarse vertices of each new vertex
    faces: Array  # [F', 3] fine
    kind: Array  # [F' + strand faces]
    corner_chart: Array  # [F', 3, 2] texel positions of the corners
    relief: Array  # [V'] metres along the normal
    rest: Array  # [V', 3] template, fine
    seed: int
    wrinkles: Wrinkles | None


def make_assets(head: Head, seed: int, hair: str = "short", wrinkles: bool = False) -> Assets:
    """Paint, strands, subdivision, relief and, if wanted, wrinkles of one person."""
    mesh = head.mesh
    colors = texture.palette(seed)
    count = len(mesh.vertices)
    pairs = np.sort(np.vstack([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]), axis=1)
    edges, index = np.unique(pairs, axis=0, return_inverse=True)
    ab, bc, ca = count + index.reshape(3, -1)
    a, b, c = mesh.faces.T
    faces = np.stack([np.stack(t, axis=-1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))], axis=1)
    # Longitudes of one triangle must not jump by a turn at the back of the head.
    theta, h = mesh.chart[mesh.faces, 0], mesh.chart[mesh.faces, 1]
    side = np.sign(np.where(np.abs(theta) < 3.1, theta, 0.0).sum(1, keepdims=True))
    theta = np.where(np.abs(theta) > 3.1, np.abs(theta) * np.where(side == 0, 1.0, side), theta)
    # The crown has every longitude; it takes that of the rest of its triangle.
    crown = h > shape.H_TOP - 1e-6
    others = np.where(crown, 0.0, theta).sum(1, keepdims=True) / np.maximum((~crown).sum(1, keepdims=True), 1)
    theta = np.where(crown, others, theta)
    coarse = np.stack(texture.texel(theta, h), axis=-1)
    p, q, r = coarse[:, 0], coarse[:, 1], coarse[:, 2]
    pq, qr, rp = (p + q) / 2, (q + r) / 2, (r + p) / 2
    corner = np.stack([np.stack(t, axis=1) for t in ((p, pq, rp), (pq, q, qr), (rp, qr, r), (pq, qr, rp))], axis=1)
    faces, corner = faces.reshape(-1, 3), corner.reshape(-1, 3, 2).astype(np.float32)
    kind = np.repeat(mesh.kind, 4)

    def refine(values: Array) -> Array:
        return np.concatenate([values, values[edges].mean(1)])

    strands = grow_strands(mesh, colors, seed, hair)
    relief = _relief(faces, corner, kind, count + len(edges), seed, bald=hair == "none")
    return Assets(
        head,
        strands,
        texture.skin_picture(mesh, colors, seed, bald=hair == "none"),
        colors,
        refine(texture.vertex_colors(mesh, colors)),
        edges,
        faces,
        np.concatenate([kind, np.full(len(strands.faces), HAIR)]),
        corner,
        relief,
        refine(mesh.vertices),
        seed,
        make_wrinkles(mesh, seed) if wrinkles else None,
    )


def _relief(faces: Array, corner: Array, kind: Array, count: int, seed: int, bald: bool) -> Array:
    """Fine displacement of the ground truth that the model lacks: uneven skin, folds of the cloth."""
    rng = np.random.default_rng([seed, 7])
    column, row = np.zeros(count), np.full(count, -1.0)
    skin = kind == SKIN
    column[faces[skin]], row[faces[skin]] = corner[skin, :, 0], corner[skin, :, 1]
    x = np.clip(column, 0, texture.WIDTH - 1).astype(int)
    y = np.clip(row, 0, texture.HEIGHT - 1).astype(int)
    fine, folds = texture.chart_noise(rng, 120)[y, x], texture.chart_noise(rng, 22)[y, x]
    h = shape.H_TOP - row / texture.HEIGHT * (shape.H_TOP - shape.H_BOTTOM)
    cloth = shape.smoothstep(h, -0.1700, -0.2000)
    theta = (column / texture.WIDTH - 0.5) * 2 * np.pi
    hair = 0.0 if bald else shape.smoothstep(shape.hair_depth(theta, h), 0.0, 0.01)
    # The eyelids stay clean, or they would dip into the eyeball.
    eye = np.minimum.reduce([np.hypot(shape.CHART_RADIUS * (theta - s * 0.405), h - shape.EYE[1]) for s in (-1, 1)])
    bare = shape.smoothstep(eye, 0.014, 0.024)
    value = 0.00018 * fine * bare * (1 - cloth) + cloth * (0.0030 + 0.0012 * folds) + 0.0010 * hair * fine
    return np.where(row >= 0, value, 0.0)


class PosedHead:
    """One timestep, ready for rays: fine vertices, normals, occlusion, colours, the Embree scene."""

    def __init__(self, assets: Assets, parameters: dict[str, Array]) -> None:
        # Imported here: the head model and the formats are usable without the ray caster.
        try:
            from embreex import rtcore_scene
            from embreex.mesh_construction import TriangleMesh
        except ImportError as error:
            raise UserError(
                f"rendering the procedural head needs the package embreex ({error}); "
                "install it with: pip install embreex"
            ) from error

        head, strands = assets.head, assets.strands
        coarse, shaped, transforms = pose_head(head.model, parameters)
        normals = vertex_normals(coarse, head.mesh.faces)
        # Phong tessellation (Boubekeur and Alexa 2008) with shape factor 3/4: midpoints bulge to the tangent planes.
        i, j = assets.edges.T
        middle = 0.5 * (coarse[i] + coarse[j])
        to_i = ((middle - coarse[i]) * normals[i]).sum(1, keepdims=True) * normals[i]
        to_j = ((middle - coarse[j]) * normals[j]).sum(1, keepdims=True) * normals[j]
        fine = np.concatenate([coarse, middle - 0.375 * (to_i + to_j)])
        if np.any(assets.relief):
            fine = fine + assets.relief[:, None] * vertex_normals(fine, assets.faces)
        fine_normals = vertex_normals(fine, assets.faces)

        # Strands ride rigidly on the head, displaced with the identity at their roots.
        offset = parameters.get("static_offset")
        moved = shaped - head.model["v_template"] - (offset[0] if offset is not None else 0.0)
        ride = strands.vertices + moved[strands.nearest]
        rotation, shift = transforms[1, :3, :3], transforms[1, :3, 3]
        self.vertices = np.vstack([fine, ride @ rotation.T + shift]).astype(np.float32)
        self.faces = np.vstack([assets.faces, strands.faces + len(fine)]).astype(np.int32)
        self.scene = rtcore_scene.EmbreeScene()
        TriangleMesh(self.scene, self.vertices, self.faces)
        occlusion = self._occlusion(fine, fine_normals, assets)
        normal = np.vstack([fine_normals, strands.normals @ rotation.T])
        tangent = np.vstack([np.zeros_like(fine), strands.tangents @ rotation.T])
        color = np.vstack([assets.vertex_color, strands.colors])
        rest = np.vstack([assets.rest, strands.vertices])
        # One row per vertex, so that a hit gathers once: normal 0-2, occlusion 3, colour 4-6; 7 pads it to 32 bytes.
        self.table = np.hstack(
            [normal, np.append(occlusion, strands.occlusion)[:, None], color, np.zeros((len(normal), 1))]
        ).astype(np.float32)
        self.tangents, self.rest = tangent.astype(np.float32), rest.astype(np.float32)
        self.folds = folded(assets.wrinkles, parameters["expr"]) if assets.wrinkles is not None else None
        self.assets = assets

    def _occlusion(self, points: Array, normals: Array, assets: Assets) -> Array:
        """[V'] share of the hemisphere (cosine-weighted) that is open within `OCCLUSION_REACH`, a little smoothed."""
        k = np.arange(OCCLUSION_RAYS)
        radius, turn = np.sqrt((k + 0.5) / OCCLUSION_RAYS), k * 2.399963
        local = np.column_stack([radius * np.cos(turn), radius * np.sin(turn), np.sqrt(1 - radius**2)])
        helper = np.where(np.abs(normals[:, :1]) > 0.8, [[0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]])
        first = np.cross(normals, helper)
        first /= np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-9)
        second = np.cross(normals, first)
        frame = np.stack([first, second, normals], axis=2)
        directions = np.einsum("vab,kb->vka", frame, local).astype(np.float32)
        origins = np.repeat((points + 3e-4 * normals).astype(np.float32), OCCLUSION_RAYS, axis=0)
        reach = np.full(len(origins), OCCLUSION_REACH, dtype=np.float32)
        blocked = self.scene.run(origins, np.ascontiguousarray(directions.reshape(-1, 3)), reach, query="OCCLUDED")
        open_ = (blocked.reshape(len(points), -1) == -1).mean(1)
        corner = open_[assets.faces].mean(1)
        total = sum(np.bincount(assets.faces[:, i], corner, len(points)) for i in range(3))
        return total / np.maximum(np.bincount(assets.faces.ravel(), minlength=len(points)), 1)

    def bounds(self, view: View) -> tuple[int, int, int, int]:
        """Pixel rectangle (left, top, right, bottom) that holds the head; the whole frame if any point is behind."""
        world_to_camera = np.linalg.inv(view.camera_to_world)
        local = self.vertices @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
        depth = -local[:, 2]
        if depth.min() < 1e-3:
            return 0, 0, view.width, view.height
        u = view.fx * local[:, 0] / depth + view.cx
        v = -view.fy * local[:, 1] / depth + view.cy
        left, top = max(0, int(u.min()) - 1), max(0, int(v.min()) - 1)
        return left, top, min(view.width, int(u.max()) + 2), min(view.height, int(v.max()) + 2)

    def _surface_gradient(self, face: Array, slope: Array) -> Array:
        """[N, 3] gradient in the plane of each face of a height that rises by `slope` [N, 2] per texel."""
        p = self.vertices[self.faces[face]]
        edges = np.roll(p, 1, axis=1) - np.roll(p, -1, axis=1)  # opposite to each corner
        normal = np.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0])
        height = (self.assets.corner_chart[face] * slope[:, None]).sum(2)
        # The gradient of a corner's barycentric coordinate is normal x edge / |normal|^2.
        total = np.cross(normal, (height[..., None] * edges).sum(1))
        return total / np.maximum(_dot(normal, normal), 1e-20)[:, None]

    def render(self, view: View, samples: int) -> tuple[Array, Array]:
        """Image [H, W, 3] uint8 sRGB over white and coverage [H, W] uint8, with `samples` rays per pixel."""
        image = np.ones((view.height, view.width, 3), dtype=np.float32)
        alpha = np.zeros((view.height, view.width), dtype=np.float32)
        left, top, right, bottom = self.bounds(view)
        if right > left and bottom > top:
            column, row = np.meshgrid(np.arange(left, right), np.arange(top, bottom))
            total = np.zeros((column.size, 3), dtype=np.float32)
            hits = np.zeros(column.size, dtype=np.float32)
            rotation = view.camera_to_world[:3, :3]
            origin = view.camera_to_world[:3, 3].astype(np.float32)
            for k in range(samples):
                # R2 low-discrepancy points (Roberts 2018), the same in every pixel.
                dx, dy = (0.5 + 0.7548776662 * k) % 1.0, (0.5 + 0.5698402910 * k) % 1.0
                if samples == 1:
                    dx = dy = 0.5
                local = np.stack(
                    [(column + dx - view.cx) / view.fx, -(row + dy - view.cy) / view.fy, -np.ones(column.shape)],
                    axis=-1,
                ).reshape(-1, 3)
                direction = local @ rotation.T
                direction = _normalized(direction.astype(np.float32))
                color, hit = self._sample(origin, direction, k, samples)
                total[hit] += color
                hits[hit] += 1.0
            share = (hits / samples)[:, None]
            window = (slice(top, bottom), slice(left, right))
            image[window] = (total / samples + (1.0 - share)).reshape(*column.shape, 3)
            alpha[window] = share.reshape(column.shape)
        return ((np.clip(image, 0, 1) * 255.0 + 0.5).astype(np.uint8), (alpha * 255.0 + 0.5).astype(np.uint8))

    def _sample(self, origin: Array, direction: Array, index: int, samples: int) -> tuple[Array, Array]:
        """Shades one ray per pixel: sRGB colours [M, 3] of the hits and their ray ids [M]."""
        result = self.scene.run(np.broadcast_to(origin, direction.shape).copy(), direction, output=True)
        hit = np.flatnonzero(result["primID"] >= 0)
        face = result["primID"][hit]
        kind = self.assets.kind[face]
        u, v = result["u"][hit], result["v"][hit]
        weights = np.stack([1.0 - u - v, u, v], axis=1)
        corners = self.faces[face]
        data = sum(np.take(self.table, corners[:, i], axis=0) * weights[:, i, None] for i in range(3))
        view_direction = -direction[hit]
        position = origin + direction[hit] * result["tfar"][hit, None]
        normal = _normalized(data[:, 0:3])
        hair = kind == HAIR
        away = _dot(normal, view_direction)
        normal[away < 0] -= 1.02 * away[away < 0, None] * view_direction[away < 0]

        albedo = data[:, 4:7].copy()
        skin = np.flatnonzero(kind == SKIN)
        place = (self.assets.corner_chart[face[skin]] * weights[skin, :, None]).sum(1)
        column = np.clip(place[:, 0], 0, texture.WIDTH - 1).astype(np.int32)
        row = np.clip(place[:, 1], 0, texture.HEIGHT - 1).astype(np.int32)
        albedo[skin] = _LINEAR[self.assets.picture[row, column]]
        if self.folds is not None:
            changed, slope, kept = self.folds.at(column, row)
            skin = skin[changed]
            albedo[skin] *= kept
            normal[skin] = _normalized(normal[skin] - self._surface_gradient(face[skin], slope))
        eyes = np.flatnonzero(kind == EYEBALL)
        if len(eyes):
            rest = (self.rest[corners[eyes]] * weights[eyes, :, None]).sum(1)
            rest[:, 0] = np.abs(rest[:, 0])  # both eyes look the same; each is symmetric
            albedo[eyes] = texture.eye_color(_normalized(rest - shape.EYE), self.assets.colors, self.assets.seed)

        # One shadow ray per sample to a point of the key light that differs from sample to sample.
        turn = 2.399963 * index
        radius = SOFTNESS * np.sqrt((index + 0.5) / samples)
        side = _unit((KEY[2], 0.0, -KEY[0]))
        towards = KEY + radius * (np.cos(turn) * side + np.sin(turn) * np.cross(KEY, side))
        towards = (towards / np.linalg.norm(towards)).astype(np.float32)
        facing = normal @ KEY
        lit = np.zeros(len(hit), dtype=np.float32)
        test = np.flatnonzero(facing > -0.4)
        start = position[test] + 6e-4 * normal[test] + 2e-4 * towards
        blocked = self.scene.run(
            start.astype(np.float32), np.broadcast_to(towards, start.shape).copy(), query="OCCLUDED"
        )
        lit[test] = blocked == -1

        occlusion = data[:, 3:4]
        wrap = np.where((kind == SKIN) | (kind == EAR), 1.0, 0.25)[:, None].astype(np.float32) * SKIN_WRAP

        def diffuse(light: Array) -> Array:
            return np.clip((normal @ light)[:, None] + wrap, 0.0, None) / (1.0 + wrap)

        up = 0.5 + 0.5 * normal[:, 1:2]
        light = (SKY * up + GROUND * (1 - up)) * (0.25 + 0.75 * occlusion)
        light[kind == EYEBALL] += 0.10
        # Stand-ins for bounced light, without which teeth look grey and the mouth a black hole.
        light[kind == MOUTH] += 0.22
        light[kind == TEETH] += 0.50
        light += KEY_COLOR * diffuse(KEY) * (0.06 * occlusion + 0.94 * lit[:, None])
        light += FILL_COLOR * diffuse(FILL) * occlusion + RIM_COLOR * diffuse(RIM) * occlusion
        shine = np.choose(kind, [0.10, 0.55, 0.25, 0.40, 0.08, 0.0]).astype(np.float32)
        sharp = np.choose(kind, [24.0, 350.0, 40.0, 60.0, 20.0, 1.0]).astype(np.float32)
        specular = np.zeros(len(hit), dtype=np.float32)
        for direction_to, strength in ((KEY, 0.1 + 0.9 * lit), (FILL, 0.30)):
            half = _normalized(view_direction + direction_to)
            specular += strength * np.clip(_dot(normal, half), 0.0, None) ** sharp
        color = albedo * light * 0.92 + (shine * specular * occlusion[:, 0])[:, None]
        if hair.any():
            # Kajiya and Kay 1989: a highlight across the strand.
            along = (self.tangents[corners[hair]] * weights[hair, :, None]).sum(1)
            cosine = _dot(along, _normalized(view_direction[hair] + KEY))
            gleam = np.clip(1.0 - cosine * cosine, 0.0, 1.0) ** 20.0 * (0.15 + 0.85 * lit[hair]) * 0.10
            color[hair] += (gleam * occlusion[hair, 0])[:, None] * np.array([1.0, 0.9, 0.75], dtype=np.float32)
        inside = np.flatnonzero((kind == MOUTH) | (kind == TEETH))
        color[inside] *= 0.60 + 0.40 * occlusion[inside]
        return np.clip(color, 0.0, 1.0) ** (1.0 / 2.2), hit


def _dot(a: Array, b: Array) -> Array:
    return np.einsum("ij,ij->i", a, b)


def _normalized(v: Array) -> Array:
    return v / np.maximum(np.sqrt(_dot(v, v)), 1e-9)[:, None]


_LINEAR = texture.to_linear(np.arange(256) / 255.0).astype(np.float32)


def render_frame(
    assets: Assets, parameters: dict[str, Any], views: list[View], samples: int
) -> list[tuple[Array, Array]]:
    """Images and masks of one timestep in several views."""
    posed = PosedHead(assets, parameters)
    return [posed.render(view, samples) for view in views]
