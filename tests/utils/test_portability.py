"""What other systems lack is not missed: every module of ours imports without it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from places import ROOT

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for room in ("ops", "utils", "arguments", "innovations", "gaussian_renderer", "synthetic", "scene", "evaluation")
    for path in [*(ROOT / room).rglob("*.py")]
    if path.stem not in ("__init__", "__main__", "lpips_weights")
) + ["train", "render", "scripts.train_efficient", "scripts.demo", "training.setup", "training.event_file"]

# Hidden after the packages of others are there, which see to themselves.
HIDE = """
import filelock, numpy, PIL.Image, scipy.spatial, torch, tqdm, tensorboard.summary.writer.record_writer
import importlib, multiprocessing.resource_tracker, os, signal, sys, tempfile
for name in {modules}:
    sys.modules[name] = None
for module, names in ((os, {os}), (signal, {signal})):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
for name in {ours}:
    importlib.import_module(name)
"""


@pytest.mark.parametrize(
    ("modules", "of_os", "of_signal"),
    [
        ("resource", "sched_getaffinity memfd_create O_DIRECTORY", ""),  # about macOS, and more
        (
            "fcntl resource pwd grp termios readline",  # about Windows
            "sched_getaffinity memfd_create pwrite pread sysconf O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_CLOEXEC O_NOCTTY "
            "fchmod getuid geteuid",
            "SIGHUP SIGKILL SIGQUIT",
        ),
    ],
)
def test_every_module_imports_without_what_other_systems_lack(modules: str, of_os: str, of_signal: str) -> None:
    script = HIDE.format(modules=modules.split(), os=of_os.split(), signal=of_signal.split(), ours=MODULES)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
