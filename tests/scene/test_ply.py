"""The point cloud files, against files made by other means and read by others."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import plyfile
import pytest
import torch

from ops.types import Gaussians
from scene import ply
from utils.errors import UserError

# The documented order, typed by hand.
HEAD = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
TAIL = ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]


def layout(degree: int = 3, bound: bool = True) -> list[str]:
    rest = 3 * ((degree + 1) ** 2 - 1)
    return HEAD + [f"f_rest_{i}" for i in range(rest)] + TAIL + ["binding_0"] * bound


def fields(count: int = 7, degree: int = 3, bound: bool = True) -> dict[str, torch.Tensor | None]:
    make = torch.Generator().manual_seed(count)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=make)

    return {
        "xyz": draw(count, 3),
        "features_dc": draw(count, 1, 3),
        "features_rest": draw(count, (degree + 1) ** 2 - 1, 3),
        "opacity": draw(count, 1),
        "scaling": draw(count, 3),
        "rotation": draw(count, 4),
        "binding": torch.randint(0, 2**24, (count,), generator=make) if bound else None,
    }


def equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name in one:
        if one[name] is None:
            assert other[name] is None
        else:
            assert one[name].dtype == other[name].dtype and one[name].shape == other[name].shape, name
            assert torch.equal(one[name], other[name]), name


def by_plyfile(
    path: Path,
    values: dict[str, np.ndarray],
    types: str = "f4",
    text: bool = False,
    order: str = "<",
    extra: list | None = None,
) -> Path:
    count = len(next(iter(values.values())))
    array = np.empty(count, dtype=[(name, types) for name in values])
    for name, column in values.items():
        array[name] = column
    plyfile.PlyData([*(extra or []), plyfile.PlyElement.describe(array, "vertex")], text=text, byte_order=order).write(
        str(path)
    )
    return path


def numbered(names: list[str], count: int = 4) -> dict[str, np.ndarray]:
    """Every value tells its row and its property: 100 * row + position."""
    return {name: 100.0 * np.arange(count) + position for position, name in enumerate(names)}


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("bound", [True, False])
def test_round_trip(tmp_path: Path, degree: int, bound: bool) -> None:
    written = fields(degree=degree, bound=bound)
    ply.write_ply(tmp_path / "deep" / "p.ply", written)
    equal(written, ply.read_ply(tmp_path / "deep" / "p.ply"))


def test_bytes_on_disk_follow_the_documented_layout(tmp_path: Path) -> None:
    written = fields(count=3)
    ply.write_ply(tmp_path / "p.ply", written)
    rows = []
    for i in range(3):
        row = [*written["xyz"][i].tolist(), 0, 0, 0, *written["features_dc"][i, 0].tolist()]
        row += [written["features_rest"][i, k, channel].item() for channel in range(3) for k in range(15)]
        row += [written["opacity"][i].item(), *written["scaling"][i].tolist(), *written["rotation"][i].tolist()]
        rows.append(struct.pack("<63f", *row, float(written["binding"][i])))
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 3\n"
    header += "".join(f"property float {name}\n" for name in layout()) + "end_header\n"
    assert (tmp_path / "p.ply").read_bytes() == header.encode() + b"".join(rows)
    assert [path.name for path in tmp_path.iterdir()] == ["p.ply"]


def test_plyfile_reads_ours(tmp_path: Path) -> None:
    written = fields()
    ply.write_ply(tmp_path / "p.ply", written)
    vertex = plyfile.PlyData.read(str(tmp_path / "p.ply"))["vertex"]
    assert [(p.name, p.val_dtype) for p in vertex.properties] == [(name, "f4") for name in layout()]
    np.testing.assert_array_equal(vertex["binding_0"].astype(np.int64), written["binding"].numpy())
    np.testing.assert_array_equal(vertex["f_rest_16"], written["features_rest"][:, 1, 1].numpy())


def check_numbered(read: dict[str, torch.Tensor | None], names: list[str], count: int = 4) -> None:
    at = {name: position for position, name in enumerate(names)}
    rest = sum(name.startswith("f_rest") for name in names) // 3
    row = 100.0 * torch.arange(count)

    def expected(*wanted: str) -> torch.Tensor:
        return torch.stack([row + at[name] for name in wanted], 1)

    assert torch.equal(read["xyz"], expected("x", "y", "z"))
    assert torch.equal(read["features_dc"][:, 0], expected("f_dc_0", "f_dc_1", "f_dc_2"))
    for k in range(rest):
        assert torch.equal(read["features_rest"][:, k], expected(*(f"f_rest_{c * rest + k}" for c in range(3))))
    assert read["features_rest"].shape == (count, rest, 3)
    assert torch.equal(read["opacity"], expected("opacity"))
    assert torch.equal(read["scaling"], expected("scale_0", "scale_1", "scale_2"))
    assert torch.equal(read["rotation"], expected("rot_0", "rot_1", "rot_2", "rot_3"))
    if "binding_0" in at:
        assert read["binding"].dtype == torch.int64
        assert torch.equal(read["binding"], expected("binding_0")[:, 0].long())
    else:
        assert read["binding"] is None
    assert all(value.is_contiguous() for value in read.values() if value is not None)


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_file_written_by_plyfile(tmp_path: Path, degree: int) -> None:
    names = layout(degree)
    check_numbered(ply.read_ply(by_plyfile(tmp_path / "p.ply", numbered(names))), names)


def test_hand_packed_file(tmp_path: Path) -> None:
    names = layout()
    header = "ply\nformat binary_little_endian 1.0\ncomment made by hand\nelement vertex 4\n"
    header += "".join(f"property float32 {name}\n" for name in names) + "end_header\n"
    rows = b"".join(struct.pack("<63f", *(100.0 * row + i for i in range(63))) for row in range(4))
    (tmp_path / "p.ply").write_bytes(header.encode() + rows)
    check_numbered(ply.read_ply(tmp_path / "p.ply"), names)


@pytest.mark.parametrize(
    "variant", [dict(types="f8"), dict(text=True), dict(types="f8", text=True), dict(order=">"), dict(types="i4")]
)
def test_other_encodings(tmp_path: Path, variant: dict) -> None:
    names = layout()
    check_numbered(ply.read_ply(by_plyfile(tmp_path / "p.ply", numbered(names), **variant)), names)


def test_no_normals_other_order_extra_properties_and_elements(tmp_path: Path) -> None:
    names = ["confidence", "red", *reversed([n for n in layout(bound=False) if n not in ("nx", "ny", "nz")])]
    faces = np.array([([0, 1, 2],)], dtype=[("vertex_indices", "i4", (3,))])
    path = by_plyfile(tmp_path / "p.ply", numbered(names), extra=[plyfile.PlyElement.describe(faces, "face")])
    check_numbered(ply.read_ply(path), names)


@pytest.mark.parametrize("degree", [1, 3])
def test_windows_line_ends(tmp_path: Path, degree: int) -> None:
    names = layout(degree)
    path = by_plyfile(tmp_path / "p.ply", numbered(names), text=True)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    check_numbered(ply.read_ply(path), names)


# ------------------------------------------------------------------ bad files


@pytest.mark.parametrize("name", [n for n in layout() if not n.startswith(("n", "f_rest", "binding"))])
def test_missing_property_is_named(tmp_path: Path, name: str) -> None:
    path = by_plyfile(tmp_path / "p.ply", numbered([n for n in layout() if n != name]))
    with pytest.raises(UserError, match=f"p.ply.* {name}"):
        ply.read_ply(path)


@pytest.mark.parametrize("drop", [["f_rest_44"], ["f_rest_42", "f_rest_43", "f_rest_44"], ["f_rest_0"]])
def test_odd_number_of_coefficients(tmp_path: Path, drop: list[str]) -> None:
    path = by_plyfile(tmp_path / "p.ply", numbered([n for n in layout() if n not in drop]))
    with pytest.raises(UserError, match="f_rest"):
        ply.read_ply(path)


def test_gap_in_the_coefficients(tmp_path: Path) -> None:
    names = [{"f_rest_3": "f_rest_99"}.get(n, n) for n in layout()]
    with pytest.raises(UserError, match="f_rest_3"):
        ply.read_ply(by_plyfile(tmp_path / "p.ply", numbered(names)))


@pytest.mark.parametrize(
    "name, value, types",
    [
        ("opacity", np.nan, "f4"),
        ("scale_1", np.inf, "f4"),
        ("x", -np.inf, "f4"),
        ("f_rest_9", 1e300, "f8"),
        ("binding_0", np.nan, "f4"),
    ],
)
def test_values_that_are_not_finite(tmp_path: Path, name: str, value: float, types: str) -> None:
    values = numbered(layout())
    values[name][2] = value
    with pytest.raises(UserError, match=f"p.ply.*{name} of vertex 2"):
        ply.read_ply(by_plyfile(tmp_path / "p.ply", values, types=types))


@pytest.mark.parametrize("value", [-1.0, 0.5, 2.0**24, 1e30])
def test_values_that_are_no_triangle(tmp_path: Path, value: float) -> None:
    values = numbered(layout())
    values["binding_0"][1] = value
    with pytest.raises(UserError, match="binding_0 of vertex 1"):
        ply.read_ply(by_plyfile(tmp_path / "p.ply", values))


def test_huge_announcement_does_not_allocate(tmp_path: Path) -> None:
    for kind in ("binary_little_endian", "ascii"):
        header = f"ply\nformat {kind} 1.0\nelement vertex 1000000000000\n"
        header += "".join(f"property float {name}\n" for name in layout()) + "end_header\n"
        (tmp_path / "p.ply").write_bytes(header.encode() + b"1 " * 63)
        with pytest.raises(UserError, match="p.ply is cut short"):
            ply.read_ply(tmp_path / "p.ply")


GOOD = b"ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty float x\nend_header\n\0\0\0\0"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"ply",
        b"solid",
        b"\x89PNG\r\n",
        GOOD[:-1],
        GOOD.replace(b"end_header", b"end"),
        GOOD.replace(b"vertex 1", b"vertex -1"),
        GOOD.replace(b"vertex 1", b"vertex x"),
        GOOD.replace(b"vertex 1", b"vertex"),
        GOOD.replace(b"vertex 1", b"vertex " + b"9" * 5000),
        GOOD.replace(b"vertex", b"thing"),
        GOOD.replace(b"float x", b"quad x"),
        GOOD.replace(b"float x", b"float"),
        GOOD.replace(b"property float x\n", b""),
        GOOD.replace(b"property float x\n", b"").replace(b" 1\n", b" 9999999\n"),
        GOOD.replace(b"property float x\n", b"property float x\nproperty float x\n") + b"\0" * 8,
        GOOD.replace(b"float x", b"list uchar float x"),
        GOOD.replace(b"float x", b"list float float x"),
        GOOD.replace(b"little", b"middle"),
        GOOD.replace(b" 1.0", b""),
        b"ply\nend_header\n",
        b"ply\n" + b"comment long\n" * 20_000 + GOOD[4:],
        b"ply\n\xff\xfe\nend_header\n",
        GOOD.replace(b"vertex 1", b"vertex 0")[:-4],
        GOOD.replace(b"binary_little_endian", b"ascii"),
        GOOD,
        b"ply" + b"x" * 100_000,
    ],
)
def test_broken_files_are_one_line_errors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.ply").write_bytes(content)
    with pytest.raises(UserError, match="p.ply") as caught:
        ply.read_ply(tmp_path / "p.ply")
    assert "\n" not in str(caught.value)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    ply.write_ply(tmp_path / "whole.ply", fields(count=2, degree=0))
    whole = (tmp_path / "whole.ply").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "p.ply").write_bytes(whole[:length])
        with pytest.raises(UserError):
            ply.read_ply(tmp_path / "p.ply")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.ply", tmp_path):
        with pytest.raises(UserError, match="cannot read"):
            ply.read_ply(path)


def test_triangle_number_that_float32_cannot_hold(tmp_path: Path) -> None:
    values = fields()
    values["binding"][3] = 2**24 + 1
    with pytest.raises(UserError, match="16777216"):
        ply.write_ply(tmp_path / "p.ply", values)


# ------------------------------------------------------------------ world export


def test_export_world_holds_raw_values_of_the_same_gaussians(tmp_path: Path) -> None:
    torch.manual_seed(0)
    count = 9
    gaussians = Gaussians(
        means=torch.randn(count, 3, requires_grad=True),
        quats=torch.nn.functional.normalize(torch.randn(count, 4), dim=1),
        scales=torch.rand(count, 3) * 0.01,
        opacities=torch.linspace(0, 1, count),
        sh=torch.randn(count, 16, 3),
    )
    gaussians.scales[0, 0] = 0
    ply.export_world(tmp_path / "w.ply", gaussians)
    vertex = plyfile.PlyData.read(str(tmp_path / "w.ply"))["vertex"]
    assert [p.name for p in vertex.properties] == layout(bound=False)

    def columns(*names: str) -> np.ndarray:
        return np.stack([vertex[name] for name in names], 1)

    np.testing.assert_array_equal(columns("x", "y", "z"), gaussians.means.detach().numpy())
    np.testing.assert_array_equal(columns("rot_0", "rot_1", "rot_2", "rot_3"), gaussians.quats.numpy())
    np.testing.assert_array_equal(columns("f_dc_0", "f_dc_1", "f_dc_2"), gaussians.sh[:, 0].numpy())
    np.testing.assert_array_equal(vertex["f_rest_31"], gaussians.sh[:, 2, 2].numpy())
    # What a viewer does with them.
    np.testing.assert_allclose(
        np.exp(columns("scale_0", "scale_1", "scale_2")), gaussians.scales.numpy(), rtol=1e-5, atol=1e-11
    )
    np.testing.assert_allclose(1 / (1 + np.exp(-vertex["opacity"])), gaussians.opacities.numpy(), atol=2e-6)
    assert np.isfinite(vertex["opacity"]).all()
    assert ply.read_ply(tmp_path / "w.ply")["binding"] is None
