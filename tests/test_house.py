"""The plan of the house: who imports whom, where ctypes stands, how long files and functions are."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

from places import ROOT

FLOORS = (
    ("ops",),
    ("utils",),
    ("arguments", "innovations", "gaussian_renderer", "synthetic"),
    ("scene",),
    ("evaluation", "exporters", "viewer"),
    ("training", "fleet"),
    ("train", "render", "view", "export", "train_many", "scripts"),
    ("benchmarks",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Import paths and commands that users type, kept where they always were.
LASTING = ("utils/region_adaptive_loss.py", "utils/color_calibration.py")
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_TRAIN = 450, 120, 300

FILES = [Path(name) for name in subprocess.check_output(["git", "ls-files", "*.py"], cwd=ROOT, text=True).split()]
PRODUCT = [path for path in FILES if path.parts[0] != "tests"]


def imported(path: Path) -> set[str]:
    """The modules that a file names in its import statements, wherever they stand."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path} imports relatively"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def room(module: str) -> str:
    return module.partition(".")[0]


def test_a_room_imports_from_lower_floors_only() -> None:
    for path in PRODUCT:
        own = room(".".join(path.with_suffix("").parts))
        above = {
            module for module in imported(path) if FLOOR.get(room(module), -1) >= FLOOR[own] and room(module) != own
        }
        assert str(path) in LASTING or not above, f"{path} imports {above}"


def test_no_module_imports_itself_round_a_circle() -> None:
    modules = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in PRODUCT}
    needs = {}
    for name, path in modules.items():
        found = imported(path) & modules.keys() - {name}
        # `from package import module` is about the module, unless the package itself gives it.
        needs[name] = {one for one in found if not any(other.startswith(f"{one}.") for other in found)}
    while leaves := {name for name, needed in needs.items() if not needed}:
        needs = {name: needed - leaves for name, needed in needs.items() if name not in leaves}
    assert needs == {}


def test_ctypes_stands_in_one_file() -> None:
    assert [str(path) for path in PRODUCT if "ctypes" in imported(path)] == ["ops/kernels.py"]


def test_files_and_functions_are_read_in_one_sitting() -> None:
    long = []
    for path in FILES:
        text = (ROOT / path).read_text(encoding="utf-8")
        if len(text.splitlines()) > (LONGEST_TRAIN if str(path) == "train.py" else LONGEST_FILE):
            long.append(str(path))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if node.end_lineno is not None and node.end_lineno - node.lineno >= LONGEST_FUNCTION:
                    long.append(f"{path}: {node.name}")
    assert long == []
