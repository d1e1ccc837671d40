"""The procedural head: formats, topology, motion, and its pictures against an independent projection."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from PIL import Image, ImageDraw
from scipy.spatial.transform import Rotation

from synthetic import make_capture, make_head_model
from synthetic.model import SHAPE_COLUMNS, Head, build_head, hair_offset, pose_head
from synthetic.modes import EXPRESSION_NAMES, IDENTITY_NAMES
from utils.errors import UserError

SIZE = (48, 64)
SETTINGS = {"size": SIZE, "cameras": 3, "timesteps": 3, "seed": 5, "samples": 4, "workers": 1, "progress": False}
WIDTHS = {"translation": 3, "rotation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6, "expr": 100}
FLAME_NAMES = (
    "face neck scalp boundary right_eyeball left_eyeball right_ear left_ear forehead eye_region nose lips "
    "right_eye_region left_eye_region"
).split()


@pytest.fixture(scope="module")
def whole() -> Head:
    return build_head(5)


@pytest.fixture(scope="module")
def head(whole: Head) -> tuple[dict, dict]:
    return whole.model, whole.masks


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_capture(tmp_path_factory.mktemp("synthetic") / "capture", **SETTINGS)


def rest(**changes: np.ndarray) -> dict[str, np.ndarray]:
    """Parameters of the neutral pose, with some replaced."""
    parameters = {name: np.zeros((1, width)) for name, width in WIDTHS.items()}
    return {**parameters, "shape": np.zeros(300), **changes}


def files_under(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- the model ---


def test_model_has_the_layout_of_a_flame_pickle(head: tuple[dict, dict]) -> None:
    model, _ = head
    count = len(model["v_template"])
    assert model["v_template"].shape == (count, 3)
    assert model["f"].dtype == np.uint32 and model["f"].shape[1] == 3
    assert model["shapedirs"].shape == (count, 3, 400)
    assert model["posedirs"].shape == (count, 3, 36)
    assert isinstance(model["J_regressor"], scipy.sparse.csc_matrix) and model["J_regressor"].shape == (5, count)
    assert model["weights"].shape == (count, 5)
    assert model["kintree_table"].astype(np.int32).tolist() == [[-1, 0, 1, 1, 1], [0, 1, 2, 3, 4]]
    assert all(type(v) is np.ndarray for k, v in model.items() if k not in ("J_regressor", "bs_style", "bs_type"))
    assert 9000 <= len(model["f"]) <= 16000


def test_weights_and_regressor_sum_to_one_and_joints_lie_in_the_head(head: tuple[dict, dict]) -> None:
    model, _ = head
    assert model["weights"].min() >= 0.0
    np.testing.assert_allclose(model["weights"].sum(1), 1.0, atol=1e-12)
    np.testing.assert_allclose(np.asarray(model["J_regressor"].sum(1)).ravel(), 1.0, atol=1e-12)
    joints = model["J_regressor"] @ model["v_template"]
    assert joints[3, 0] > 0.02 > -0.02 > joints[4, 0]  # left is +x
    np.testing.assert_allclose(joints[3] * [-1, 1, 1], joints[4], atol=1e-9)
    assert joints[0, 1] < joints[1, 1] < joints[2, 1] < joints[3, 1]


def test_topology_is_sane(head: tuple[dict, dict]) -> None:
    model, _ = head
    vertices, faces = model["v_template"], model["f"].astype(np.int64)
    assert np.isfinite(vertices).all()
    assert np.array_equal(np.unique(faces), np.arange(len(vertices)))
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    area = 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1)
    longest = np.max([np.linalg.norm(p - q, axis=1) for p, q in ((a, b), (b, c), (c, a))], axis=0)
    assert area.min() > 1e-8
    # Height over longest edge: a sliver has nearly none.
    assert np.quantile(2 * area / longest**2, 0.01) > 0.05
    # Consistent winding and no fins: a directed edge appears once.
    directed = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    assert len(np.unique(directed, axis=0)) == len(directed)


def test_modes_are_used_and_the_rest_is_zero(head: tuple[dict, dict]) -> None:
    model, _ = head
    size = np.abs(model["shapedirs"]).max((0, 1))
    used = set(range(len(IDENTITY_NAMES))) | {SHAPE_COLUMNS + i for i in range(len(EXPRESSION_NAMES))}
    assert len(IDENTITY_NAMES) >= 10 and len(EXPRESSION_NAMES) >= 12
    for column in range(400):
        assert (0.0005 < size[column] < 0.03) if column in used else size[column] == 0.0


def test_masks_have_flames_names_and_are_disjoint_where_they_should_be(head: tuple[dict, dict]) -> None:
    model, masks = head
    assert set(masks) == {*FLAME_NAMES, "teeth"}
    for name, ids in masks.items():
        assert len(ids) > 10 and len(np.unique(ids)) == len(ids), name
        assert ids.min() >= 0 and ids.max() < len(model["v_template"])
    apart = (
        "nose lips left_eye_region right_eye_region scalp neck left_ear right_ear left_eyeball right_eyeball teeth "
        "forehead"
    ).split()
    together = np.concatenate([masks[name] for name in apart])
    assert len(np.unique(together)) == len(together)
    assert set(masks["eye_region"]) == set(masks["left_eye_region"]) | set(masks["right_eye_region"])
    assert set(masks["nose"]) | set(masks["lips"]) <= set(masks["face"])
    center = {name: model["v_template"][ids].mean(0) for name, ids in masks.items()}
    assert center["left_eyeball"][0] > 0 > center["right_eyeball"][0]
    assert center["lips"][1] < center["nose"][1] < center["eye_region"][1] < center["forehead"][1]


def test_same_seed_same_arrays(head: tuple[dict, dict]) -> None:
    (first, first_masks), (second, second_masks) = head, make_head_model(5)
    for name in ("v_template", "f", "shapedirs", "posedirs", "weights"):
        assert first[name].tobytes() == second[name].tobytes()
    assert all(np.array_equal(first_masks[name], second_masks[name]) for name in first_masks)


# --- motion ---


def test_jaw_opens_the_mouth_and_leaves_the_nose(head: tuple[dict, dict]) -> None:
    model, masks = head
    closed = pose_head(model, rest())[0]
    opened = pose_head(model, rest(jaw_pose=np.array([[0.3, 0.0, 0.0]])))[0]
    move = np.linalg.norm(opened - closed, axis=1)
    assert move[masks["nose"]].max() < 0.0005
    lips = model["v_template"][masks["lips"]]
    front = np.abs(lips[:, 0]) < 0.010
    lower, upper = masks["lips"][front & (lips[:, 1] < -0.053)], masks["lips"][front & (lips[:, 1] > -0.045)]
    assert (opened - closed)[lower, 1].max() < -0.010 and move[upper].max() < 0.002
    teeth = masks["teeth"]
    assert move[teeth].min() == 0.0 and move[teeth].max() > 0.010
    np.testing.assert_allclose(closed, model["v_template"], atol=1e-9)


def test_eyeballs_rotate_rigidly_about_their_joint(head: tuple[dict, dict]) -> None:
    model, masks = head
    turn = np.array([0.1, 0.3, 0.0])
    turned = pose_head(model, rest(eyes_pose=np.concatenate([turn, np.zeros(3)])[None]))[0]
    joint = (model["J_regressor"] @ model["v_template"])[3]
    ids = masks["left_eyeball"]
    expected = Rotation.from_rotvec(turn).apply(model["v_template"][ids] - joint) + joint
    np.testing.assert_allclose(turned[ids], expected, atol=1e-9)
    others = np.setdiff1d(np.arange(len(turned)), ids)
    np.testing.assert_allclose(turned[others], model["v_template"][others], atol=1e-9)


def test_a_blink_closes_the_lids_over_the_eyeball(whole: Head) -> None:
    model, mesh = whole.model, whole.mesh
    loop, ball = mesh.parts["left_lid_loop"], mesh.parts["left_eyeball"]
    expression = np.zeros((1, 100))
    expression[0, EXPRESSION_NAMES.index("blink_left")] = 1.0
    closed = pose_head(model, rest(expr=expression))[0]

    def opening(vertices: np.ndarray) -> float:
        x, y = vertices[loop, 0], vertices[loop, 1]
        middle = np.abs(x - x.mean()) < 0.006
        return float(np.ptp(y[middle]))

    assert opening(closed) < 0.25 * opening(model["v_template"])
    center = (model["J_regressor"] @ model["v_template"])[3]
    radius = np.linalg.norm(model["v_template"][ball] - center, axis=1).max()
    assert np.linalg.norm(closed[loop] - center, axis=1).min() > radius


# --- the capture ---


def test_capture_is_complete(capture: Path) -> None:
    splits = {name: json.loads((capture / f"transforms_{name}.json").read_text()) for name in ("train", "val", "test")}
    everything = json.loads((capture / "transforms.json").read_text())
    assert [len(splits[n]["frames"]) for n in ("train", "val", "test")] == [4, 2, 3]
    assert len(everything["frames"]) == 9
    keys = (
        "timestep_index timestep_id camera_index camera_id file_path fg_mask_path flame_param_path w h fl_x fl_y cx cy "
        "transform_matrix"
    ).split()
    for frame in everything["frames"]:
        assert set(keys) <= set(frame)
        with Image.open(capture / frame["file_path"]) as image, Image.open(capture / frame["fg_mask_path"]) as mask:
            assert image.mode == "RGB" and mask.mode == "L" and image.size == mask.size == SIZE
        rotation = np.array(frame["transform_matrix"])[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(rotation) > 0
    assert {f["camera_index"] for f in splits["train"]["frames"]}.isdisjoint(
        f["camera_index"] for f in splits["val"]["frames"]
    )
    assert {f["timestep_index"] for f in splits["train"]["frames"]}.isdisjoint(
        f["timestep_index"] for f in splits["test"]["frames"]
    )
    with open(capture / "head_model.pkl", "rb") as file:
        count = len(pickle.load(file)["v_template"])
    shapes = {name: (1, width) for name, width in WIDTHS.items()}
    shapes.update(shape=(300,), static_offset=(1, count, 3))
    for name in ("canonical_flame_param.npz", "flame_param/00002.npz", "true_flame_param/00002.npz"):
        with np.load(capture / name) as stored:
            assert {k: stored[k].shape for k in stored.files} == shapes
            assert all(stored[k].dtype == np.float32 and np.isfinite(stored[k]).all() for k in stored.files)
    with np.load(capture / "blendshape_mapping.npz") as stored:
        assert {k: stored[k].shape for k in stored.files} == {
            "expr": (52, 17),
            "jaw_pose": (52, 3),
            "eyes_pose": (52, 6),
        }


def test_background_is_white_and_masks_are_partial_at_the_edge(capture: Path) -> None:
    image = np.asarray(Image.open(capture / "images/00000_01.png"))
    mask = np.asarray(Image.open(capture / "fg_masks/00000_01.png"))
    assert (image[mask == 0] == 255).all()
    assert mask.min() == 0 and mask.max() == 255 and ((mask > 0) & (mask < 255)).sum() > 20
    assert 0.2 < (mask > 127).mean() < 0.8
    assert image[mask == 255].std() > 25  # skin, hair and cloth, not one flat colour


def test_rendered_mask_agrees_with_a_projection_of_the_mesh(capture: Path) -> None:
    """Pillow fills the projected triangles; hair ends and curvature may differ at the border only."""
    with open(capture / "head_model.pkl", "rb") as file:
        model = pickle.load(file)
    scale = 4
    for frame in json.loads((capture / "transforms.json").read_text())["frames"]:
        with np.load(capture / "true_flame_param" / f"{frame['timestep_index']:05d}.npz") as stored:
            vertices = pose_head(model, dict(stored))[0]
        to_camera = np.linalg.inv(np.array(frame["transform_matrix"]))
        local = vertices @ to_camera[:3, :3].T + to_camera[:3, 3]
        u = frame["fl_x"] * local[:, 0] / -local[:, 2] + frame["cx"]
        v = frame["fl_y"] * -local[:, 1] / -local[:, 2] + frame["cy"]
        canvas = Image.new("L", (SIZE[0] * scale, SIZE[1] * scale), 0)
        draw = ImageDraw.Draw(canvas)
        for corners in (np.column_stack([u, v]) * scale)[model["f"].astype(np.int64)]:
            draw.polygon([tuple(p) for p in corners], fill=255)
        projected = np.asarray(canvas.resize(SIZE, Image.Resampling.BOX)) > 127
        mask = np.asarray(Image.open(capture / frame["fg_mask_path"])) > 127
        assert (projected & mask).sum() / (projected | mask).sum() > 0.9
        column, row = np.floor(u).astype(int), np.floor(v).astype(int)
        seen = (column >= 0) & (column < SIZE[0]) & (row >= 0) & (row < SIZE[1])
        covered = np.asarray(Image.open(capture / frame["fg_mask_path"]))[row[seen], column[seen]] > 0
        assert covered.mean() > 0.99


def test_tracking_noise_has_the_stated_size_and_leaves_identity_alone(capture: Path) -> None:
    differences: dict[str, list[np.ndarray]] = {}
    for path in sorted((capture / "flame_param").iterdir()):
        with np.load(path) as noisy, np.load(capture / "true_flame_param" / path.name) as truth:
            for name in noisy.files:
                differences.setdefault(name, []).append(np.ravel(noisy[name] - truth[name]))
    joined = {name: np.concatenate(values) for name, values in differences.items()}
    assert not joined["shape"].any() and not joined["static_offset"].any()
    poses = np.concatenate([joined[n] for n in ("rotation", "neck_pose", "jaw_pose", "eyes_pose")])
    assert 0.6 < poses.std() / np.radians(0.3) < 1.5
    assert 0.4 < joined["translation"].std() / 0.0003 < 1.8
    assert 0.5 < joined["expr"][joined["expr"] != 0].std() / 0.03 < 1.6


def test_a_stopped_run_is_completed_and_equals_an_unbroken_one(capture: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    shutil.copytree(capture, out)
    for name in ("images/00001_00.png", "fg_masks/00002_01.png", "flame_param/00000.npz", "transforms_train.json"):
        (out / name).unlink()
    make_capture(out, **SETTINGS)
    first, second = files_under(capture), files_under(out)
    assert first.keys() == second.keys()
    assert all(first[name] == second[name] for name in first if not name.endswith(".npz"))  # npz carry the date
    with np.load(capture / "flame_param/00000.npz") as a, np.load(out / "flame_param/00000.npz") as b:
        assert all(np.array_equal(a[name], b[name]) for name in a.files)


def test_foreign_folders_and_impossible_settings_are_refused(capture: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        make_capture(tmp_path, **SETTINGS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt"]
    with pytest.raises(UserError, match="other settings"):
        make_capture(capture, **{**SETTINGS, "seed": 6})
    for wrong in (
        {"cameras": 1},
        {"timesteps": 1},
        {"size": (0, 64)},
        {"samples": 0},
        {"seed": -1},
        {"tracking_noise": float("nan")},
    ):
        with pytest.raises(UserError):
            make_capture(tmp_path / "new", **{**SETTINGS, **wrong})
    assert not (tmp_path / "new").exists()


def test_hair_cap_is_an_offset_of_the_scalp_only(whole: Head) -> None:
    size = np.linalg.norm(hair_offset(whole), axis=1)
    assert 0.004 < size.max() < 0.010
    assert (size[whole.masks["scalp"]] > 0.0002).mean() > 0.9
    for name in ("nose", "lips", "eye_region", "left_ear", "teeth", "left_eyeball"):
        assert not size[whole.masks[name]].any()
