"""Wrinkles and hair of the procedural head, measured in its pictures."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from procedural_faces import parameters_of

from synthetic import __main__, capture, make_capture, render, texture
from synthetic.model import Head, build_head, pose_head
from synthetic.motion import DISTANCE, TARGET, identity, make_views
from synthetic.render import Assets, make_assets
from utils.errors import UserError

SIZE = (96, 128)
VIEW = make_views(3, SIZE)[0][1]
SETTINGS: dict[str, Any] = {"size": (32, 44), "cameras": 2, "timesteps": 2, "seed": 5, "samples": 1, "progress": False}
LOOKS: dict[str, Any] = {"wrinkles": True, "hair": "long"}
# Metres in front of the face, |x| and y: what each expression may change, and what it must.
BOXES = {
    "forehead": ((0.000, 0.055), (0.048, 0.112)),
    "brow": ((0.000, 0.016), (0.015, 0.070)),
    "eye corners": ((0.036, 0.085), (-0.012, 0.056)),
    "folds of the smile": ((0.010, 0.050), (-0.075, -0.003)),
    "cheeks": ((0.000, 0.085), (-0.055, 0.035)),
}


@pytest.fixture(scope="module")
def head() -> Head:
    return build_head(5)


@pytest.fixture(scope="module", autouse=True)
def one_color() -> Iterator[None]:
    """The paint takes most of the time, and nothing here depends on it."""
    plain = np.full((texture.HEIGHT, texture.WIDTH, 3), 190, dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texture, "skin_picture", lambda *args, **options: plain)
        yield


@pytest.fixture(scope="module")
def shaved(head: Head, one_color: None) -> Assets:
    return make_assets(head, 5, "none", wrinkles=True)


def posed(assets: Assets, **expressions: float) -> render.PosedHead:
    """With little effort spent on shadows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "OCCLUSION_RAYS", 4)
        return render.PosedHead(assets, parameters_of(assets.head, np.zeros(300), expressions))


def face(assets: Assets) -> tuple[np.ndarray, np.ndarray]:
    """Image [H, W, 3] (integers) and mask [H, W] from ahead, at rest."""
    image, mask = posed(assets).render(VIEW, 1)
    return image.astype(int), mask


def difference(assets: Assets, **expressions: float) -> np.ndarray:
    """[H, W, 3] what the wrinkles add to the picture of an expression, -255..255."""
    head = posed(assets, **expressions)
    wrinkled = head.render(VIEW, 1)[0].astype(int)
    head.folds = None
    return wrinkled - head.render(VIEW, 1)[0]


def change(assets: Assets, **expressions: float) -> np.ndarray:
    """[H, W] the size of it, 0..255."""
    return np.abs(difference(assets, **expressions)).max(2)


def box(name: str, side: int = 0) -> np.ndarray:
    """[H, W] pixels of one of BOXES, on both sides of the face or one (1 = its left, +x)."""
    depth = DISTANCE - 0.075  # of the face's middle
    column, row = np.meshgrid(np.arange(SIZE[0]) + 0.5, np.arange(SIZE[1]) + 0.5)
    x = (column - VIEW.cx) / VIEW.fx * depth + TARGET[0]
    y = (VIEW.cy - row) / VIEW.fy * depth + TARGET[1]
    (low_x, high_x), (low_y, high_y) = BOXES[name]
    sided = side * x > -0.010 if side else np.ones_like(x, dtype=bool)
    return (np.abs(x) >= low_x) & (np.abs(x) <= high_x) & (y > low_y) & (y < high_y) & sided


def test_skin_is_smooth_at_rest_and_under_the_opposite_of_an_expression(shaved: Assets) -> None:
    assert not change(shaved).any()
    assert not change(shaved, smile=-0.5, brow_down=-0.5, frown=1.0).any()


@pytest.mark.parametrize(
    "expression, side, changed",
    [
        ("brow_up_left", 1, ["forehead"]),
        ("brow_up_right", -1, ["forehead"]),
        ("brow_down", 0, ["brow"]),
        ("squint", 0, ["eye corners"]),
        ("smile", 0, ["eye corners", "folds of the smile", "cheeks"]),
    ],
)
def test_wrinkles_grow_with_their_expression_where_they_belong(
    shaved: Assets, expression: str, side: int, changed: list[str]
) -> None:
    half, full = (change(shaved, **{expression: value}) for value in (0.5, 1.0))
    allowed = np.zeros_like(full, dtype=bool)
    for name in changed:
        region = box(name, side)
        assert full[region].max() > 15
        assert full[region].sum() > 1.4 * half[region].sum() > 100
        allowed |= region
    assert not full[~allowed].any() and not half[~allowed].any()


def test_a_smile_reddens_the_cheeks(shaved: Assets) -> None:
    added = difference(shaved, smile=1.0)
    depth = DISTANCE - 0.075
    row = int(VIEW.cy - (-0.010 - TARGET[1]) / depth * VIEW.fy)
    for x in (-0.040, 0.040):
        column = int(VIEW.cx + x / depth * VIEW.fx)
        patch = (slice(row - 2, row + 3), slice(column - 2, column + 3))
        red, green, blue = added[patch].mean((0, 1))
        assert abs(red) < 1 and green < -10 and blue < -8


def covered(head: Head, moment: dict[str, Any]) -> Image.Image:
    """The mesh drawn by Pillow: 255 where its triangles are, at 4 times the size."""
    local = pose_head(head.model, moment)[0] - VIEW.camera_to_world[:3, 3]
    local = local @ VIEW.camera_to_world[:3, :3]
    u, v = VIEW.fx * local[:, 0] / -local[:, 2] + VIEW.cx, VIEW.fy * -local[:, 1] / -local[:, 2] + VIEW.cy
    canvas = Image.new("L", (SIZE[0] * 4, SIZE[1] * 4), 0)
    draw = ImageDraw.Draw(canvas)
    for corners in (np.column_stack([u, v]) * 4)[head.mesh.faces]:
        draw.polygon([tuple(p) for p in corners], fill=255)
    return canvas


def test_hair_none_has_the_outline_of_the_mesh_and_long_goes_beyond_it(shaved: Assets, head: Head) -> None:
    moment = parameters_of(head, np.zeros(300), {})
    mesh = covered(head, moment)
    # A pixel more and a pixel less than the mesh: triangles are flat, skin is not.
    more, less = (
        np.asarray(mesh.filter(chosen(9)).resize(SIZE, Image.Resampling.BOX))
        for chosen in (ImageFilter.MaxFilter, ImageFilter.MinFilter)
    )
    skin, bare = face(shaved)
    assert not bare[more == 0].any() and (bare[less == 255] == 255).all()
    strands = render.grow_strands(head.mesh, shaved.colors, 5, "long")
    kind = np.concatenate([shaved.kind, np.full(len(strands.faces), render.HAIR)])
    hairy, long = face(dataclasses.replace(shaved, strands=strands, kind=kind))
    assert (long >= bare).all()
    assert ((long > 127) & (more == 0)).sum() > 0.10 * (bare > 127).sum()
    # It does not hang into the face.
    middle = box("brow") | box("folds of the smile")
    assert (np.abs(hairy - skin).max(2) < 60)[middle].mean() > 0.98


def test_the_same_flags_give_the_same_bytes_and_others_are_refused(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "build_head", lambda seed: head)
    monkeypatch.setattr(render, "grow_strands", functools.partial(render.grow_strands, count=300))
    monkeypatch.setattr(render, "OCCLUSION_RAYS", 4)
    first, second = tmp_path / "first", tmp_path / "second"
    make_capture(first, **SETTINGS, **LOOKS, workers=1)
    make_capture(second, **SETTINGS, **LOOKS, workers=1)
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*.*"))
    assert sum(name.startswith("images") for name in names) == 4
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    # A folder belongs to its flags.
    assert LOOKS.items() <= json.loads((first / capture.MARKER).read_text()).items()
    others: list[dict[str, Any]] = [{}, {"hair": "long"}, {"wrinkles": True}, {"wrinkles": True, "hair": "none"}]
    for other in others:
        with pytest.raises(UserError, match="other settings"):
            make_capture(first, **SETTINGS, **other)


def test_another_seed_is_another_person(head: Head) -> None:
    def person(seed: int) -> np.ndarray:
        return pose_head(head.model, parameters_of(head, identity(seed), {}))[0]

    face_of = head.masks["face"]
    people = [person(seed)[face_of] for seed in range(4)]
    for i, one in enumerate(people):
        for other in people[:i]:
            assert np.linalg.norm(one - other, axis=1).mean() > 0.001
    palettes = [texture.palette(seed) for seed in range(8)]
    for part in ("skin", "hair"):
        assert len({tuple(getattr(p, part)) for p in palettes}) >= 3


def test_an_unknown_hair_is_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["synthetic", str(tmp_path / "out"), "--hair", "curly"])
    with pytest.raises(UserError, match="--hair is curly; give one of short, long, none"):
        __main__.main()
    assert not (tmp_path / "out").exists()
