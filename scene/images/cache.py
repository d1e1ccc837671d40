"""Every training image, decoded once by worker processes and kept as bytes.

What it costs: a real capture of 16 cameras has about 15,000 images of 550x802
pixels, 19.8 GB as RGB bytes (four times that as floats). One core decodes about
65 such PNGs with their masks in a second: four minutes on one core, 15 seconds
on 16. A training loop that decodes in every iteration pays those 15 ms 600,000
times, two and a half hours.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import json
import math
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from ops import kernels
from ops.area import area_reduce
from ops.types import Camera
from scene.dataset.common import View
from scene.images import decode as image_decode
from scene.images.workers import affordable
from utils.cores import usable_cores
from utils.errors import UserError
from utils.files import atomic_path, locked, remove_leftovers
from utils.memory import available_memory
from utils.progress import progress_bar

MAX_WORKERS = 32
CUDA_SHARE = 0.5  # of the free GPU memory may hold images
SUFFIX = ".images"  # of the memory-mapped file
LAYOUT = 1  # raise when the content of that file changes its meaning


class ImageCache:
    """The images of `views`, composited over `background` and at training size.

    Kept in memory; in a memory-mapped file under `folder` when they take more
    than `ram_share` of the memory that is free; on the GPU when `device` is one
    and they fit into half of its free memory. The file carries a key of
    everything its content depends on, so later runs reuse it, and runs that
    start together wait for the first to write it. It may be deleted whenever
    no run uses it.

    Stored planar, [3, H, W] per image, with `alpha` [4, H, W]: converting to the
    float image that the loss wants then is one pass over contiguous memory.

    Attributes:
        where: "ram", "mmap" or "cuda".
        nbytes: size of all images.
    """

    def __init__(
        self,
        views: Sequence[View],
        background: tuple[float, float, float],
        *,
        device: torch.device | str = "cpu",
        ram_share: float = 0.5,
        folder: Path | None = None,
        workers: int | None = None,
        progress: bool = True,
        alpha: bool = False,
    ) -> None:
        """Decodes, or reuses the file of an earlier run.

        Args:
            background: RGB 0..1.
            device: where the images are to stay.
            folder: for the memory-mapped file; None = only memory will do.
            workers: number of decoding processes; None = one per usable core, at most 32. Fewer where the largest
                picture is large for the free memory.
            alpha: whether `alpha` will be asked for, which takes a third more memory.

        Raises:
            UserError: an image is missing, broken or of the wrong size, there is no room, or no such device.
        """
        self._device = _device(device)
        self._ram_share, self._folder, self._progress = ram_share, folder, progress
        self._cameras = [view.camera for view in views]
        self._planes = 4 if alpha else 3
        self._opaque: dict[int, bool] = {}  # by index, whether the alpha says nothing; found when asked for
        self._jobs = _jobs(views, background, alpha)
        count = affordable(views, workers or min(MAX_WORKERS, usable_cores(), max(1, len(views) // 8)))
        self._store(lambda file: _decode(self._jobs, file, count, progress), lambda: _key(self._jobs))

    def at_scale(self, scale: float, count: int | None = None) -> ImageCache:
        """The first `count` images (None: all) at `scale` times their resolution, area-filtered: another cache.

        Sizes and pixel grid are those of `Camera.scaled(scale)`. Made from the
        images here, in about a millisecond each of 802x550 pixels per core, and
        kept where `ram_share` and the free memory of now allow: in memory, in a
        file beside that of the full size, or on the GPU. It takes `scale`^2 of
        the memory of the images that it holds; let go of it when done.

        Args:
            scale: above 0, at most 1; 1 gives this cache itself.

        Raises:
            UserError: there is no room.
        """
        if scale == 1.0:
            return self
        scaled = copy.copy(self)
        scaled._opaque = {}
        scaled._cameras = [camera.scaled(scale) for camera in self._cameras[:count]]
        scaled._jobs = self._jobs[:count]

        def fill(file: int) -> None:
            def reduce(index: int) -> None:
                camera = scaled._cameras[index]
                image = area_reduce(self._planar(index), camera.height, camera.width)
                image_decode.write(file, image.cpu().numpy(), scaled._offsets[index])

            # PyTorch's own operations bring their threads with them.
            threads = usable_cores() if kernels.available() and self.where != "cuda" else 1
            shown = progress_bar(len(scaled), f"Images at scale {scale:g}", "image", quiet=not self._progress)
            with ThreadPoolExecutor(threads) as pool, shown as bar:
                for _ in pool.map(reduce, range(len(scaled))):
                    bar.update()

        scaled._store(fill, lambda: f"{_key(scaled._jobs)}-{scale!r}")
        return scaled

    def _store(self, fill: Callable[[int], None], key: Callable[[], str]) -> None:
        """Finds a place for the images and has `fill` write them into a file there, unless the file `key` is there."""
        self._offsets = _offsets(self._cameras, self._planes)
        self.nbytes = self._offsets[-1]
        count = len(self._cameras)
        if self.nbytes <= self._ram_share * available_memory():
            self.where = "ram"
            self._bytes = _in_memory(self.nbytes, fill)
        elif self._folder is not None:
            self.where = "mmap"
            self._bytes = _in_file(Path(self._folder) / f"{key()}{SUFFIX}", self.nbytes, count, fill)
        else:
            raise UserError(
                f"{count} images take {self.nbytes / 1e9:.1f} GB of memory, which is not free: "
                "train at a smaller --resolution"
            )
        device = self._device
        if device.type == "cuda" and self.nbytes <= CUDA_SHARE * torch.cuda.mem_get_info(device)[0]:
            self.where = "cuda"
            self._bytes = _copy_in_pieces(self._bytes, device)

    def __len__(self) -> int:
        return len(self._cameras)

    def __getitem__(self, index: int) -> Tensor:
        """[H, W, 3] uint8, a view into the cache: do not write to it."""
        return self._planar(index)[:3].permute(1, 2, 0)

    def image(self, index: int, device: torch.device | str) -> Tensor:
        """[3, H, W] float32, 0..1, contiguous, on `device`; a new tensor."""
        # Bytes travel to the device, a quarter of the floats.
        return self._planar(index)[:3].to(device).float().div_(255.0)

    def alpha(self, index: int, device: torch.device | str) -> Tensor | None:
        """[1, H, W] float32, 0..1, on `device`, a new tensor; None where neither image nor mask says what is behind."""
        plane = self._planar(index)[3:]
        if index not in self._opaque:
            self._opaque[index] = bool((plane == 255).all())
        return None if self._opaque[index] else plane.to(device).float().div_(255.0)

    def _planar(self, index: int) -> Tensor:
        camera, planes = self._cameras[index], self._planes  # an IndexError ends iteration over the cache
        start = self._offsets[index % len(self._cameras)]
        stop = start + planes * camera.height * camera.width
        return self._bytes[start:stop].view(planes, camera.height, camera.width)


def _device(name: torch.device | str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--data_device {name} is no device: give cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--data_device {name}: PyTorch finds no CUDA device here, give cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--data_device {name}: PyTorch sees {torch.cuda.device_count()} GPU(s) here, from cuda:0 on")
    return device


def _jobs(views: Sequence[View], background: tuple[float, float, float], alpha: bool) -> list[dict[str, Any]]:
    """What the workers are to do."""
    offsets = _offsets([view.camera for view in views], 4 if alpha else 3)
    common = {"background": background, **({"alpha": True} if alpha else {})}
    return [
        {**view.job(), "size": (view.camera.width, view.camera.height), **common, "offset": offset}
        for view, offset in zip(views, offsets)
    ]


def _offsets(cameras: Sequence[Camera], planes: int) -> list[int]:
    """Where each image starts, in bytes; one more than there are: the last is the size of all."""
    return list(itertools.accumulate((planes * camera.height * camera.width for camera in cameras), initial=0))


def _in_memory(nbytes: int, fill: Callable[[int], None]) -> Tensor:
    """[nbytes] uint8 in anonymous shared memory, written by `fill`."""
    if not nbytes:
        return torch.empty(0, dtype=torch.uint8)
    # A memfd has no name, so nothing is left behind however the run ends, and
    # it does not count against /dev/shm, which containers limit to 64 MB.
    with contextlib.ExitStack() as stack:
        if hasattr(os, "memfd_create"):
            file = os.memfd_create("images")
            stack.callback(os.close, file)
        else:
            file = stack.enter_context(tempfile.TemporaryFile()).fileno()
        os.ftruncate(file, nbytes)
        fill(file)
        return torch.frombuffer(mmap.mmap(file, nbytes), dtype=torch.uint8)


def _in_file(path: Path, nbytes: int, count: int, fill: Callable[[int], None]) -> Tensor:
    """[nbytes] uint8 of `count` images, mapped read-only from the file `path`; `fill` writes it where it is missing."""
    folder = path.parent
    with locked(folder, wait=True):
        if not path.exists() or path.stat().st_size != nbytes:
            remove_leftovers(folder)
            if nbytes > shutil.disk_usage(folder).free:
                raise UserError(
                    f"{count} images take {nbytes / 1e9:.1f} GB, more than is free in memory and in "
                    f"{folder}: train at a smaller --resolution or make room"
                )
            with atomic_path(path) as temporary, open(temporary, "rb+") as file:
                os.ftruncate(file.fileno(), nbytes)
                fill(file.fileno())
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), nbytes, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")  # as it should be: others use the file too
        return torch.frombuffer(mapped, dtype=torch.uint8)


def _key(jobs: list[dict[str, Any]]) -> str:
    """A name for the pixels that `jobs` make: files with size and time of change, sizes, background."""
    key = hashlib.sha256(f"{LAYOUT}".encode())
    for job in jobs:
        stats = []
        for path in (job["image"], job["mask"]):
            with contextlib.suppress(OSError):  # a missing file is reported by the worker
                if path:
                    status = os.stat(path)
                    stats.append((path, status.st_size, status.st_mtime_ns))
        key.update(json.dumps([job, stats]).encode())
    return key.hexdigest()[:24]


def _copy_in_pieces(source: Tensor, device: torch.device, piece: int = 256 << 20) -> Tensor:
    """`source` on `device`, without ever having all of a mapped file in memory."""
    copy = torch.empty(source.numel(), dtype=torch.uint8, device=device)
    for start in range(0, source.numel(), piece):
        copy[start : start + piece].copy_(source[start : start + piece])
    return copy


def _decode(jobs: list[dict[str, Any]], file: int, workers: int, progress: bool) -> None:
    """Runs `jobs` on `workers` processes that write into `file`; `UserError` for the first that fails."""
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_worker(file)) for _ in range(workers)]
        # All headers first: a wrong size is found in seconds, not after minutes of decoding.
        _run(processes, jobs, check=True, quiet=True)
        _run(processes, jobs, check=False, quiet=not progress)


@contextlib.contextmanager
def _worker(file: int) -> Iterator[subprocess.Popen]:
    """A decoding process.

    Not `multiprocessing`: forking after PyTorch started its threads can hang,
    and its other start methods import the main script again, PyTorch included.
    """
    # The workers share the cores already; -P keeps the modules of this folder from shadowing libraries.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-P", image_decode.__file__, str(file)],
        pass_fds=(file,),
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    try:
        yield process
    finally:
        process.kill()  # idle, or nobody wants its answer any more
        process.communicate()


def _run(processes: list[subprocess.Popen], jobs: list[dict[str, Any]], *, check: bool, quiet: bool) -> None:
    """Hands `jobs` out in small batches, so that the workers end together; one thread waits for each worker."""
    size = max(1, min(64 if check else 8, math.ceil(len(jobs) / len(processes))))
    batches = iter([jobs[start : start + size] for start in range(0, len(jobs), size)])
    lock = threading.Lock()
    failures: list[str] = []

    def feed(process: subprocess.Popen) -> None:
        while True:
            with lock:
                batch = next(batches, None)
            if batch is None or failures:
                return
            error = _request(process, batch, check)
            with lock:
                if error:
                    failures.append(error)
                bar.update(len(batch))

    with progress_bar(len(jobs), "Decoding images", "image", quiet=quiet) as bar:
        with ThreadPoolExecutor(len(processes)) as pool:
            try:
                for future in [pool.submit(feed, process) for process in processes]:
                    future.result()
            except BaseException:  # Ctrl-C: the threads stop after their batch
                failures.append("interrupted")
                raise
    if failures:
        raise UserError(failures[0])


def _request(process: subprocess.Popen, batch: list[dict[str, Any]], check: bool) -> str | None:
    """Has `process` do `batch`; the first error, if there is one."""
    requests, answers = cast(IO[str], process.stdin), cast(IO[str], process.stdout)
    try:
        requests.write(json.dumps({"check": check, "jobs": batch}) + "\n")
        requests.flush()
        answer = answers.readline()
    except BrokenPipeError:
        answer = ""
    if not answer:
        status = process.wait()
        return f"the process that decoded {batch[0]['image']} ended with status {status}" + (
            ": probably too little memory, try a smaller --resolution" if status == -9 else ""
        )
    return next((error for error in json.loads(answer) if error), None)
