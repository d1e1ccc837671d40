"""Identity and expression modes, skinning weights and joints of the procedural head.

Modes are sums of soft brushes: a displacement times a Gaussian around a
landmark, on both sides of the face or one. One unit of a mode is the full
action (a closed eye, a broad smile).
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from synthetic import shape
from synthetic.mesh import HeadMesh

Array = np.ndarray

JOINTS = np.array(
    [
        [0.0, -0.1650, -0.0350],  # root
        [0.0, -0.0850, -0.0320],  # neck
        [0.0, -0.0080, 0.0080],  # jaw
        shape.EYE,  # left eye
        shape.EYE * [-1, 1, 1],  # right eye
    ]
)
PARENTS = (-1, 0, 1, 1, 1)
IDENTITY_NAMES = tuple(
    (
        "width height depth jaw_width chin nose_length nose_width nose_tip cheekbones brow_ridge lips "
        "mouth_width forehead ears neck_width asymmetry"
    ).split()
)
EXPRESSION_NAMES = tuple(
    (
        "smile frown brow_up_left brow_up_right brow_down blink_left blink_right funnel cheek_puff sneer "
        "stretch upper_lip_up lower_lip_down eyes_wide squint mouth_left chin_up"
    ).split()
)


def _brush(points: Array, center: tuple, size: tuple | float, move: tuple, mirrored: bool = True) -> Array:
    """[V, 3] displacement `move` (metres) around `center` with standard deviations `size`; x is mirrored too."""
    sizes = np.broadcast_to(np.asarray(size, dtype=np.float64), 3)
    total = np.zeros_like(points)
    for sign in (1.0, -1.0) if mirrored else (1.0,):
        flip = np.array([sign, 1.0, 1.0])
        weight = np.exp(-0.5 * (((points - np.asarray(center) * flip) / sizes) ** 2).sum(1))
        total += weight[:, None] * (np.asarray(move) * flip)
    return total


def neighbors(faces: Array, count: int) -> sparse.csr_matrix:
    """[V, V] row-normalised adjacency of the triangles."""
    i = np.concatenate([faces[:, 0], faces[:, 1], faces[:, 2]])
    j = np.concatenate([faces[:, 1], faces[:, 2], faces[:, 0]])
    ones = np.ones(len(i))
    adjacency = sparse.coo_matrix((ones, (i, j)), shape=(count, count)).tocsr()
    adjacency = ((adjacency + adjacency.T) > 0).astype(np.float64)
    degree = np.maximum(np.asarray(adjacency.sum(1)).ravel(), 1.0)
    return sparse.diags(1.0 / degree) @ adjacency


def lower_side(mesh: HeadMesh) -> Array:
    """[V] how much a vertex belongs to the lower jaw rather than the skull, 0..1, before it fades into the neck."""
    x, y, z = mesh.vertices.T
    # From the corner of the mouth back to the jaw joint the border rises.
    line = np.where(z > 0.0700, shape.mouth_line(x), shape.MOUTH_Y + (0.0700 - z) * 0.60)
    width = 0.0012 + 0.0200 * shape.smoothstep(np.abs(x), 0.25 * shape.MOUTH_CORNER_X, 1.5 * shape.MOUTH_CORNER_X)
    return shape.smoothstep((line - y) / width, -0.5, 0.5)


def skinning_weights(mesh: HeadMesh) -> Array:
    """[V, 5] weights of root, neck, jaw, left eye, right eye; rows sum to one."""
    y, z = mesh.vertices[:, 1], mesh.vertices[:, 2]
    jaw = lower_side(mesh)
    jaw *= shape.smoothstep(z, 0.0080, 0.0560) * shape.smoothstep(y, -0.1300, -0.0980)
    average = neighbors(mesh.faces, len(y))
    for _ in range(3):
        jaw = 0.5 * jaw + 0.5 * (average @ jaw)
    parts = mesh.parts
    rim = parts["mouth_rim"]
    angle = 2.0 * np.pi * np.arange(len(rim)) / len(rim)
    # The rim itself parts cleanly: upper lip 0, lower lip 1, both one half at the corners.
    corner = np.abs(np.cos(angle)) ** 5
    jaw[rim] = np.where(np.sin(angle) > 0, 0.5 * corner, 1.0 - 0.5 * corner)
    jaw[rim[np.abs(np.sin(angle)) < 1e-9]] = 0.5
    for depth, fade in ((1, 1.0), (2, 0.95), (3, 0.85), (4, 0.7), (5, 0.5)):
        jaw[parts[f"mouth_row_{depth}"]] = fade * jaw[rim]
    jaw[parts["mouth_row_6"]] = 0.2
    jaw[parts["upper_teeth"]] = 0.0
    jaw[parts["lower_teeth"]] = 1.0
    for name in ("left_ear", "right_ear", "left_eyeball", "right_eyeball"):
        jaw[parts[name]] = 0.0
    head = shape.smoothstep(y, -0.1800, -0.0950)
    weights = np.zeros((len(y), 5))
    weights[:, 0], weights[:, 1], weights[:, 2] = 1.0 - head, head * (1.0 - jaw), head * jaw
    for joint, name in ((3, "left_eyeball"), (4, "right_eyeball")):
        weights[parts[name]] = np.eye(5)[joint]
    return weights / weights.sum(1, keepdims=True)


def joint_regressor(mesh: HeadMesh) -> sparse.csc_matrix:
    """[5, V] sparse; each row sums to one and reproduces its joint on the template exactly."""
    x, y, _ = mesh.vertices.T
    skin = np.zeros(len(x), dtype=bool)
    skin[mesh.parts["skin"]] = True
    ears = [np.concatenate([mesh.parts["left_ear"], mesh.parts["right_ear"]])]
    rings = [np.flatnonzero(skin & (np.abs(y - joint[1]) < 0.012)) for joint in JOINTS[:2]]
    chosen = rings + ears + [mesh.parts["left_eyeball"], mesh.parts["right_eyeball"]]
    rows, columns, values = [], [], []
    for row, (ids, joint) in enumerate(zip(chosen, JOINTS)):
        # The smallest correction of equal weights that meets the joint and keeps the sum.
        conditions = np.vstack([mesh.vertices[ids].T, np.ones(len(ids))])
        even = np.full(len(ids), 1.0 / len(ids))
        missing = np.append(joint, 1.0) - conditions @ even
        value = even + np.linalg.pinv(conditions) @ missing
        rows.append(np.full(len(ids), row))
        columns.append(ids)
        values.append(value)
    return sparse.csc_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(5, len(x))
    )


def identity_modes(mesh: HeadMesh) -> Array:
    """[V, 3, 16] smooth changes of the head's shape (metres per unit), in the order of IDENTITY_NAMES."""
    p = mesh.vertices
    x, y, z = p.T
    head = shape.smoothstep(y, -0.1700, -0.0700)[:, None]
    zero = np.zeros_like(x)
    low = shape.smoothstep(y, 0.0200, -0.0600)[:, None] * head
    high = shape.smoothstep(y, 0.0500, 0.1200)[:, None]
    modes = [
        head * np.column_stack([0.055 * x, zero, zero]),
        head * np.column_stack([zero, 0.050 * (y - 0.02), zero]),
        head * np.column_stack([zero, zero, 0.050 * z]),
        low * np.column_stack([0.10 * x * shape.smoothstep(z, -0.03, 0.03), zero, zero]),
        _brush(p, (0, -0.080, 0.082), (0.020, 0.016, 0.025), (0, -0.0025, 0.0040), False),
        _brush(p, (0, -0.015, 0.100), (0.014, 0.020, 0.025), (0, -0.0015, 0.0040), False),
        _brush(p, (0.012, -0.020, 0.092), (0.008, 0.011, 0.014), (0.0022, 0, 0)),
        _brush(p, (0, -0.018, 0.108), (0.010, 0.009, 0.012), (0, 0.0028, 0.0012), False),
        _brush(p, (0.050, 0.002, 0.060), (0.016, 0.016, 0.022), (0.0030, 0, 0.0018)),
        _brush(p, (0.022, 0.045, 0.085), (0.020, 0.009, 0.020), (0, -0.0008, 0.0028)),
        _brush(p, (0, -0.043, 0.095), (0.015, 0.004, 0.015), (0, 0.0004, 0.0018), False)
        + _brush(p, (0, -0.056, 0.093), (0.013, 0.005, 0.015), (0, -0.0010, 0.0018), False),
        _brush(p, (0.024, -0.049, 0.080), (0.010, 0.010, 0.016), (0.0025, 0, -0.0006)),
        high * np.column_stack([zero, 0.03 * (y - 0.05), 0.045 * z * (z > 0)]),
        _brush(p, (0.090, 0.006, -0.012), (0.010, 0.024, 0.020), (0.0035, 0, 0.0010)),
        shape.smoothstep(y, -0.0700, -0.1300)[:, None] * np.column_stack([0.08 * x, zero, 0.06 * (z + 0.03)]),
        _brush(p, (0, -0.020, 0.095), (0.020, 0.030, 0.030), (0.0016, 0, 0), False)
        + _brush(p, (0.030, -0.060, 0.060), (0.020, 0.020, 0.030), (0.0012, 0.0010, 0), False),
    ]
    result = np.stack(modes, axis=-1)
    # Eyeballs move as rigid bodies, with the mean of the skin's field at their centre.
    for name, center in (("left_eyeball", JOINTS[3]), ("right_eyeball", JOINTS[4])):
        ids = mesh.parts[name]
        near = np.linalg.norm(p[mesh.parts["skin"]] - center, axis=1) < 0.020
        result[ids] = result[mesh.parts["skin"][near]].mean(0)
    return result


def _lid_rotation(mesh: HeadMesh, side: str, upper: float, lower: float) -> Array:
    """[V, 3] displacement of one eye's lids; `upper`, `lower` = share of the opening each covers (1 closes it).

    Lid points turn about the eyeball's horizontal axis, so that they stay on its surface;
    the turn fades towards the brow and the cheek.
    """
    sign = 1.0 if side == "left" else -1.0
    center = shape.EYE * [sign, 1, 1]
    q = (mesh.vertices - center) * [sign, 1, 1]
    loop = mesh.parts[f"{side}_lid_loop"]
    rim = q[loop]

    def margin(is_upper: Array) -> tuple[Array, Array]:
        chosen = rim[is_upper]
        order = np.argsort(chosen[:, 0])
        return chosen[order, 0], np.arctan2(chosen[order, 1], chosen[order, 2])

    corners = [np.argmin(rim[:, 0]), np.argmax(rim[:, 0])]
    line = np.interp(rim[:, 0], rim[corners, 0], rim[corners, 1])
    is_upper = rim[:, 1] >= line - 1e-6
    is_lower = rim[:, 1] <= line + 1e-6
    top, bottom = np.interp(q[:, 0], *margin(is_upper)), np.interp(q[:, 0], *margin(is_lower))
    angle = np.arctan2(q[:, 1], q[:, 2])
    radius = np.linalg.norm(q, axis=1)
    near = shape.smoothstep(radius, 0.0260, 0.0180) * shape.smoothstep(np.abs(q[:, 0] - 0.0003), 0.0185, 0.0140)
    near *= q[:, 2] > 0
    opening = np.maximum(top - bottom, 0.0)
    above = angle > 0.5 * (top + bottom)
    rise = np.where(above, shape.smoothstep(angle - top, 0.75, 0.0), shape.smoothstep(bottom - angle, 0.6, 0.0))
    # Compressing the band between crease and margin must not fold it.
    turn = near * rise * opening * np.where(above, -upper, lower)
    cosine, sine = np.cos(turn), np.sin(turn)
    turned = np.column_stack([q[:, 0], cosine * q[:, 1] + sine * q[:, 2], cosine * q[:, 2] - sine * q[:, 1]])
    # A straight path cuts the corner of the arc; a slightly larger radius keeps it outside the eyeball.
    lift = 1.0 + 0.045 * (np.abs(turn) / 0.9) * (np.abs(turn) > 0)
    move = (turned * lift[:, None] - q) * [sign, 1, 1]
    for part in ("lid_margin", "lid_back"):
        move[mesh.parts[f"{side}_{part}"]] = move[loop]
    return move


def expression_modes(mesh: HeadMesh) -> Array:
    """[V, 3, 17] facial actions (metres per unit), in the order of EXPRESSION_NAMES."""
    p = mesh.vertices
    low = lower_side(mesh)
    rim = mesh.parts["mouth_rim"]
    angle = 2.0 * np.pi * np.arange(len(rim)) / len(rim)
    low[rim] = np.where(np.sin(angle) > 1e-9, 0.0, np.where(np.sin(angle) < -1e-9, 1.0, 0.5))
    low, up = low[:, None], 1.0 - low[:, None]
    corner = (0.0240, shape.MOUTH_Y, 0.0790)
    smile = (
        _brush(p, corner, (0.010, 0.011, 0.016), (0.0062, 0.0060, -0.0055))
        + _brush(p, (0.036, -0.020, 0.070), (0.014, 0.014, 0.02), (0.0016, 0.0034, 0.0026))
        + _brush(p, (0.034, 0.010, 0.066), (0.012, 0.006, 0.02), (0, 0.0012, 0.0005))
        + _brush(p, (0, shape.MOUTH_Y, 0.090), (0.014, 0.008, 0.02), (0, 0.0004, -0.0016), False)
    )
    frown = _brush(p, corner, (0.010, 0.011, 0.016), (0.0012, -0.0062, -0.0008)) + low * _brush(
        p, (0, -0.056, 0.090), (0.010, 0.006, 0.02), (0, 0.0014, 0.0008), False
    )

    def brow_up(mirror: float) -> Array:
        return _brush(p, (0.026 * mirror, 0.046, 0.082), (0.017, 0.009, 0.02), (0, 0.0062, 0.0004), False) + _brush(
            p, (0.024 * mirror, 0.066, 0.086), (0.020, 0.014, 0.02), (0, 0.0030, 0), False
        )

    brow_down = _brush(p, (0.013, 0.043, 0.088), (0.010, 0.008, 0.02), (-0.0028, -0.0050, 0.0008)) + _brush(
        p, (0.030, 0.046, 0.080), (0.012, 0.008, 0.02), (0, -0.0026, 0)
    )
    funnel = (
        _brush(p, corner, (0.012, 0.012, 0.016), (-0.0080, 0, 0.0052))
        + up * _brush(p, (0, -0.044, 0.095), (0.012, 0.007, 0.02), (0, 0.0012, 0.0056), False)
        + low * _brush(p, (0, -0.055, 0.093), (0.012, 0.008, 0.02), (0, -0.0018, 0.0054), False)
    )
    puff = _brush(p, (0.042, -0.036, 0.062), (0.014, 0.015, 0.020), (0.0078, -0.0004, 0.0052)) + _brush(
        p, (0, -0.036, 0.092), (0.016, 0.006, 0.02), (0, 0, 0.0012), False
    )
    sneer = (
        _brush(p, (0.013, -0.018, 0.092), (0.008, 0.011, 0.016), (0.0008, 0.0040, -0.0006))
        + up * _brush(p, (0.010, -0.041, 0.092), (0.010, 0.007, 0.02), (0, 0.0030, -0.0004))
        + _brush(p, (0.011, 0.016, 0.082), (0.006, 0.012, 0.016), (-0.0002, -0.0016, 0.0012))
    )
    stretch = _brush(p, corner, (0.011, 0.012, 0.016), (0.0070, -0.0012, -0.0050)) + _brush(
        p, (0, shape.MOUTH_Y, 0.090), (0.015, 0.008, 0.02), (0, 0, -0.0018), False
    )
    upper_lip_up = up * _brush(p, (0, -0.043, 0.093), (0.013, 0.008, 0.02), (0, 0.0054, 0.0004), False)
    lower_lip_down = low * _brush(p, (0, -0.056, 0.091), (0.013, 0.009, 0.02), (0, -0.0058, 0.0006), False)
    mouth_left = _brush(p, (0, -0.050, 0.088), (0.022, 0.016, 0.03), (0.0060, 0, 0), False)
    chin_up = low * _brush(p, (0, -0.066, 0.088), (0.018, 0.014, 0.02), (0, 0.0040, 0.0008), False)
    modes = [
        smile,
        frown,
        brow_up(1.0),
        brow_up(-1.0),
        brow_down,
        _lid_rotation(mesh, "left", 0.88, 0.12),
        _lid_rotation(mesh, "right", 0.88, 0.12),
        funnel,
        puff,
        sneer,
        stretch,
        upper_lip_up,
        lower_lip_down,
        sum(_lid_rotation(mesh, s, -0.22, -0.05) for s in ("left", "right")),
        sum(_lid_rotation(mesh, s, 0.16, 0.22) for s in ("left", "right"))
        + _brush(p, (0.032, 0.008, 0.070), (0.014, 0.006, 0.02), (0, 0.0016, 0.0008)),
        mouth_left,
        chin_up,
    ]
    result = np.stack(modes, axis=-1)
    rigid = [
        mesh.parts[n]
        for n in ("left_eyeball", "right_eyeball", "upper_teeth", "lower_teeth", "left_ear", "right_ear", "mouth_row_6")
    ]
    result[np.concatenate(rigid)] = 0.0
    # The lining follows the lips, less with depth; the lid margins follow their lid.
    for depth, share in ((1, 1.0), (2, 0.6), (3, 0.2), (4, 0.0), (5, 0.0)):
        result[mesh.parts[f"mouth_row_{depth}"]] = share * result[rim]
    for side in ("left", "right"):
        for part in ("lid_margin", "lid_back"):
            result[mesh.parts[f"{side}_{part}"]] = result[mesh.parts[f"{side}_lid_loop"]]
    return result


def pose_correctives(mesh: HeadMesh) -> Array:
    """[V, 3, 36]: the cheeks hollow and the lower lip rolls out as the jaw opens; all other entries are zero."""
    p = mesh.vertices
    result = np.zeros((len(p), 3, 36))
    moves = _brush(p, (0.045, -0.030, 0.045), (0.014, 0.018, 0.02), (-0.0080, 0, 0)) + lower_side(mesh)[
        :, None
    ] * _brush(p, (0, -0.055, 0.090), (0.014, 0.006, 0.02), (0, -0.0020, 0.0030), False)
    still = np.ones(len(p), dtype=bool)
    still[mesh.parts["skin"]] = False
    moves[still] = 0.0
    rim = mesh.parts["mouth_rim"]
    for depth, share in ((1, 1.0), (2, 0.5)):
        moves[mesh.parts[f"mouth_row_{depth}"]] = share * moves[rim]
    # Entry 9 (j - 1) + 7 of the feature is R[2, 1] = sin(angle) of joint j; the jaw is joint 2.
    result[:, :, 9 + 7] = moves
    return result


def region_masks(mesh: HeadMesh) -> dict[str, Array]:
    """Region -> sorted vertex ids (int64), under FLAME's names plus "teeth"."""
    p = mesh.vertices
    x, y, z = p.T
    theta, h = mesh.chart.T
    parts = mesh.parts
    lids = {s: np.concatenate([parts[f"{s}_lid_margin"], parts[f"{s}_lid_back"]]) for s in ("left", "right")}
    skin = np.zeros(len(x), dtype=bool)
    skin[parts["skin"]] = True
    scalp = skin & (shape.hair_depth(theta, h) > 0.0)
    front = skin & (np.abs(theta) < np.radians(75)) & (y > -0.0950) & (z > 0.012) & ~scalp
    nose = front & (np.abs(x) < np.interp(y, [-0.031, -0.012, 0.02, 0.03], [0.021, 0.021, 0.010, 0.008]))
    nose &= (y > -0.0330) & (y < 0.0300) & (z > 0.0780)
    lips = front & (shape.lip_depth(x, y) > -0.0008)
    lips[parts["mouth_rim"]] = True
    eye = {}
    for side, sign in (("left", 1.0), ("right", -1.0)):
        q = (p - shape.EYE * [sign, 1, 1]) / np.array([0.0240, 0.0200, 1.0])
        eye[side] = front & ~nose & ((q[:, :2] ** 2).sum(1) < 1.0) & (sign * x > 0)
        eye[side][lids[side]] = True
    face = front.copy()
    face[np.concatenate([parts[f"mouth_row_{d}"] for d in range(1, 7)] + [parts["mouth_rim"]])] = True
    face |= eye["left"] | eye["right"]
    forehead = front & (y > 0.0560) & ~eye["left"] & ~eye["right"]
    masks = {
        "face": face,
        "neck": skin & ~face & ~scalp,
        "scalp": scalp,
        "boundary": skin & (h < shape.H_BOTTOM + 1e-6),
        "forehead": forehead,
        "eye_region": eye["left"] | eye["right"],
        "nose": nose,
        "lips": lips,
        "right_eye_region": eye["right"],
        "left_eye_region": eye["left"],
    }
    result = {name: np.flatnonzero(mask).astype(np.int64) for name, mask in masks.items()}
    for name in ("right_eyeball", "left_eyeball", "right_ear", "left_ear"):
        result[name] = np.sort(parts[name]).astype(np.int64)
    result["teeth"] = np.sort(np.concatenate([parts["upper_teeth"], parts["lower_teeth"]])).astype(np.int64)
    return result
