"""The ways to look at an avatar: its picture, and what stands behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian_renderer.mesh_overlay import draw_mesh
from ops.sh import from_colors
from ops.types import Camera, Gaussians
from scene import Avatar
from utils.errors import UserError
from utils.images import error_map, heat_map

POINT = 1.2  # pixels, one standard deviation
SOLID = 0.99  # opacity
EDGE = 1.5  # standard deviations at which an ellipsoid ends
# Rasterizers cap what a Gaussian hides, so one that is this opaque has an edge: where it falls through 1/2.
STEEP = 1e4
ERROR = "Error against photograph"
OUTSIDE = (0.55, 0.55, 0.55)  # Gaussians of triangles that no mask names
# Regions of FLAME's masks in colors that differ for the color-blind too (P. Tol's "light" and "muted" schemes);
# a later one paints over an earlier: the lips are part of the face.
REGIONS = {
    "scalp": (0.47, 0.37, 0.66),
    "neck": (0.60, 0.60, 0.20),
    "boundary": (0.73, 0.73, 0.73),
    "face": (0.93, 0.87, 0.53),
    "forehead": (0.87, 0.80, 0.47),
    "left_ear": (0.93, 0.53, 0.40),
    "right_ear": (0.93, 0.53, 0.40),
    "nose": (0.27, 0.67, 0.60),
    "left_eye_region": (0.47, 0.67, 0.87),
    "right_eye_region": (0.47, 0.67, 0.87),
    "left_eyeball": (0.20, 0.13, 0.53),
    "right_eyeball": (0.20, 0.13, 0.53),
    "lips": (0.80, 0.40, 0.47),
    "teeth": (1.00, 1.00, 1.00),
}


class Shot(NamedTuple):
    """A photograph of the capture and the camera that took it."""

    camera: Camera  # `timestep` is a row of the avatar's motion
    photograph: Callable[[], Tensor]  # [3, H, W] 0..1, of the camera's size


class Wish(NamedTuple):
    """What one picture is to show."""

    camera: Camera
    pose: Tensor | None  # [D] a row of FLAME parameters; None: a static scene
    row: int | None  # of the motion, if the pose is exactly that: then with its dynamic offset
    background: Tensor  # [3] 0..1
    photograph: Tensor | None = None  # [3, H, W] of the camera's size


def picture(avatar: Avatar, wish: Wish) -> Tensor:
    """The avatar in calibrated colors."""
    gaussians, _ = _posed(avatar, wish)
    return avatar.over(avatar.look(gaussians, wish.camera), wish.background)


def alpha(avatar: Avatar, wish: Wish) -> Tensor:
    """How much of the background it hides: white all, black nothing."""
    gaussians, _ = _posed(avatar, wish)
    return avatar.draw(gaussians, wish.camera).alpha.expand(3, -1, -1)


def depth(avatar: Avatar, wish: Wish) -> Tensor:
    """The expected distance along the optical axis, near bright; the background where it is less than half there."""
    gaussians, _ = _posed(avatar, wish)
    matrix = wish.camera.world_to_camera.to(gaussians.means)
    distances = gaussians.means @ matrix[2, :3] + matrix[2, 3]  # [N] metres
    solid = gaussians.opacities > 0.5
    near, far = torch.quantile(distances[solid] if solid.any() else distances, distances.new_tensor([0.005, 0.995]))
    nearness = ((far - distances) / (far - near).clamp_min(1e-6)).clamp(0.0, 1.0)
    out = _paint(avatar, gaussians, nearness[:, None].expand(-1, 3), wish.camera, torch.zeros_like(wish.background))
    mean = out.image[0] / out.alpha[0].clamp_min(1e-6)
    return torch.where(out.alpha > 0.5, heat_map(mean, 1.0), wish.background[:, None, None])


def mesh(avatar: Avatar, wish: Wish) -> Tensor:
    """The tracked mesh, shaded and half transparent, over the picture."""
    gaussians, vertices = _posed(avatar, wish)
    if vertices is None or avatar.model.flame is None:
        raise UserError("a static scene has no mesh")
    image = avatar.over(avatar.look(gaussians, wish.camera), wish.background).clamp(0.0, 1.0)
    return draw_mesh(image, vertices, avatar.model.flame.faces, wish.camera)


def ellipsoids(avatar: Avatar, wish: Wish) -> Tensor:
    """Every Gaussian as a solid ellipsoid of 1.5 standard deviations, neighbors in slightly different shades."""
    gaussians, _ = _posed(avatar, wish)
    visible = gaussians.opacities > 0.1
    # The number of a Gaussian decides its shade, so that it keeps it while things move.
    shade = 0.8 + 0.4 * ((torch.arange(len(visible), device=visible.device) * 0.618034) % 1.0)
    sh = gaussians.sh * shade[:, None, None]
    shrink = EDGE / math.sqrt(2 * math.log(2 * STEEP))
    solid = Gaussians(
        gaussians.means[visible],
        gaussians.quats[visible],
        gaussians.scales[visible] * shrink,
        torch.full_like(gaussians.opacities[visible], STEEP),
        sh[visible],
    )
    out = avatar.draw(solid, wish.camera, background=wish.background)
    return out.image


def regions(avatar: Avatar, wish: Wish) -> Tensor:
    """The centers of the Gaussians, colored by the region of the face they are bound to."""
    gaussians, _ = _posed(avatar, wish)
    return _points(avatar, gaussians, region_colors(avatar), wish)


def crowds(avatar: Avatar, wish: Wish) -> Tensor:
    """The centers of the Gaussians, the brighter the more of them their triangle holds."""
    gaussians, _ = _posed(avatar, wish)
    crowd = crowd_sizes(avatar)
    colors = heat_map(crowd[None].float() - 0.5, crowd_top(avatar))[:, 0].T
    return _points(avatar, gaussians, colors, wish)


def error(avatar: Avatar, wish: Wish) -> Tensor:
    """Where the picture differs from the photograph; brightest: by 20 % of the full range."""
    if wish.photograph is None:
        raise UserError("look through a camera of the capture, at a timestep of which it has a photograph")
    return error_map(picture(avatar, wish).clamp(0.0, 1.0), wish.photograph)


SHOWS: dict[str, Callable[[Avatar, Wish], Tensor]] = {
    "Picture": picture,
    "Alpha": alpha,
    "Depth": depth,
    "Mesh over picture": mesh,
    "Ellipsoids": ellipsoids,
    "Points by region": regions,
    "Points by number": crowds,
    ERROR: error,
}
NEED_MESH = ("Mesh over picture", "Points by region", "Points by number")


# ---- parts --------------------------------------------------------------------


def _posed(avatar: Avatar, wish: Wish) -> tuple[Gaussians, Tensor | None]:
    """World-space Gaussians and the mesh. A row that nobody changed is that of the training, dynamic offset and all."""
    if wish.row is not None or wish.pose is None:
        return avatar.model(wish.row or 0)
    return avatar.gaussians(wish.pose)


def _paint(avatar: Avatar, gaussians: Gaussians, colors: Tensor, camera: Camera, background: Tensor):
    """The Gaussians in plain `colors` [N, 3] 0..1."""
    plain = gaussians._replace(sh=from_colors(colors)[:, None].contiguous())
    return avatar.draw(plain, camera, background=background, sh_degree=0)


def _points(avatar: Avatar, gaussians: Gaussians, colors: Tensor, wish: Wish) -> Tensor:
    matrix = wish.camera.world_to_camera.to(gaussians.means)
    distances = (gaussians.means @ matrix[2, :3] + matrix[2, 3]).clamp_min(0.0)
    points = gaussians._replace(
        scales=(POINT * distances / wish.camera.fy)[:, None].expand(-1, 3).contiguous(),
        opacities=torch.full_like(gaussians.opacities, SOLID),
    )
    return _paint(avatar, points, colors, wish.camera, wish.background).image


def _binding(avatar: Avatar) -> Tensor:
    if avatar.model.binding is None:
        raise UserError("the Gaussians of a static scene are bound to nothing")
    return avatar.model.binding


def region_colors(avatar: Avatar) -> Tensor:
    """[N, 3] of each Gaussian, by the region that most corners of its triangle are in."""
    flame, binding = avatar.model.flame, _binding(avatar)
    assert flame is not None
    colors = torch.tensor(OUTSIDE, device=binding.device).repeat(len(flame.faces), 1)
    for name, color in REGIONS.items():
        if name in flame.masks:
            inside = torch.zeros(len(flame.v_template), device=binding.device)
            inside[flame.masks[name]] = 1.0
            colors[inside[flame.faces].sum(1) >= 2] = torch.tensor(color, device=binding.device)
    return colors[binding]


def crowd_sizes(avatar: Avatar) -> Tensor:
    """[N] how many Gaussians the triangle of each holds, itself included."""
    binding = _binding(avatar)
    return torch.bincount(binding)[binding]


def crowd_top(avatar: Avatar) -> float:
    """The number of Gaussians on a triangle that is shown brightest."""
    return max(2.0, float(torch.bincount(_binding(avatar)).float().quantile(0.99)))


def letterboxed(panels: list[Tensor], aspect: float, margin: Tensor) -> Tensor:
    """Pictures [3, H, W] side by side, centered on a field [3, H', W'] of the given aspect in the color `margin` [3].

    No pixel is resampled: a browser that stretches the field over its window shows every one as it is.
    """
    strip = torch.cat(panels, dim=2)
    _, height, width = strip.shape
    if width < height * aspect:
        wider = max(width, round(height * aspect))
        left = (wider - width) // 2
        sides = (left, wider - width - left, 0, 0)
    else:
        taller = max(height, round(width / aspect))
        above = (taller - height) // 2
        sides = (0, 0, above, taller - height - above)
    inside = F.pad(torch.ones_like(strip[:1]), sides)
    return torch.where(inside > 0, F.pad(strip, sides), margin[:, None, None])


def legend(avatar: Avatar, show: str) -> str:
    """What the colors of a show mean, as HTML; nothing where they need no word."""
    if show == "Points by region":
        masks = avatar.model.flame.masks if avatar.model.flame is not None else {}
        named = {name.replace("left_", "").replace("right_", ""): c for name, c in REGIONS.items() if name in masks}
        if not named:
            return "This head model has no masks that name regions."
        return " ".join(_patch(color, name.replace("_", " ")) for name, color in named.items())
    if show == "Points by number":
        top = crowd_top(avatar)
        steps = [1.0 + (top - 1.0) * share for share in (0.0, 0.5, 1.0)]
        colors = heat_map(torch.tensor([steps]) - 0.5, top)[:, 0].T.tolist()
        return "On its triangle: " + " ".join(_patch(c, f"{step:.0f}") for c, step in zip(colors, steps))
    words = {"Depth": "Near is bright.", ERROR: "Black: none; brightest: 20 % of the full range or more."}
    return words.get(show, "")


def _patch(color: Sequence[float], text: str) -> str:
    red, green, blue = (round(255 * channel) for channel in color)
    return f'<span style="color:rgb({red},{green},{blue})">&#9632;</span>&nbsp;{text}'
