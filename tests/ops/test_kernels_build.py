"""The native library built for lesser processors than this one gives the same picture."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

CHECK = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import torch
from gaussian_renderer.backends import native
from raster_scenes import compare, make_scene, join
compare(native.rasterize, join(make_scene(50, 150), make_scene(51, 20, sigma=(10.0, 80.0), opacity=(0.05, 0.4))))
print("equal")
"""


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def _python(script: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these names are of x86-64 processors")
@pytest.mark.parametrize("arch,needs", [("x86-64-v2", "sse4_2"), ("x86-64-v3", "avx2")])
def test_lesser_processors(arch: str, needs: str, tmp_path: Path) -> None:
    if needs not in _cpu_flags():
        pytest.skip(f"this processor has no {needs}")
    environment = {**os.environ, "NATIVE_ARCH": arch, "NATIVE_CACHE": str(tmp_path)}
    script = CHECK.format(root=str(ROOT), tests=str(ROOT / "tests"))
    result = _python(script, environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip() == "equal"
    assert len(list(tmp_path.glob("native-*.so"))) == 1


@pytest.mark.parametrize(
    ("refused", "openmp"),
    [
        ("-march=*|-mprefer-*|-fvisibility=*", True),
        ("-fopenmp|-march=*", False),  # Apple's Clang without libomp
    ],
)
def test_a_compiler_that_refuses_flags(tmp_path: Path, refused: str, openmp: bool) -> None:
    """Each of them is left out or replaced, and the picture is the same; the second start finds the library."""
    compiler = tmp_path / "c++"
    compiler.write_text(
        f'#!/bin/sh\nfor word; do case "$word" in {refused}|-mcpu=*|-lomp) exit 1 ;; esac; done\n'
        f'exec {shutil.which("c++") or shutil.which("g++")} "$@"\n'
    )
    compiler.chmod(0o755)
    environment = {**os.environ, "CXX": str(compiler), "NATIVE_CACHE": str(tmp_path / "cache")}
    environment["NATIVE_FLAGS"] = "-O1"  # sooner built
    script = CHECK.format(root=str(ROOT), tests=str(ROOT / "tests"))
    for building in (True, False):
        result = _python(script, environment)
        assert result.stdout.strip() == "equal", result.stderr[-3000:]
        assert ("Building" in result.stderr) == building
    (library,) = (tmp_path / "cache").glob("native-*.so")
    assert (b"GOMP" in library.read_bytes() or b"omp_get" in library.read_bytes()) == openmp


def test_without_a_compiler_auto_falls_back_with_one_warning(tmp_path: Path) -> None:
    environment = {**os.environ, "CXX": str(tmp_path / "no-compiler"), "NATIVE_CACHE": str(tmp_path)}
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import gaussian_renderer as g\n"
        "print([g.choose_rasterizer('auto', 'cpu')[0] for _ in range(2)])"
    )
    result = _python(script, environment)
    assert result.stdout.strip() == "['reference', 'reference']"
    assert result.stderr.count("UserWarning") == 1
