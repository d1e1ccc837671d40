"""One avatar trained by several processes ("ranks"): who sees which view, and what all of them have to agree on.

    torchrun --nproc_per_node 4 train.py -s DATA -m OUT ...

Data parallel over views. Every process holds the whole avatar, draws the same views from the same sampler, renders its
share of them, and averages its gradients with those of the others; so all take the same step. What grows the avatar is
summed over the processes, so that all grow it alike. The loop asks one object: `Ranks`, or `Alone`, which is one
process and does nothing. A checkpoint is what one process would have written: any number of them can go on from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from arguments import Options
from innovations.region_adaptive_loss import NoRegionWeights, RegionAdaptiveLoss
from ops.finite import not_finite
from scene.gaussian_model import GaussianModel
from training import checkpoint
from training.density_control import DensityControl
from training.views import Views
from training.watch import Lost, Watch
from utils.cores import usable_cores
from utils.errors import UserError, one_line
from utils.interrupt import StopSignals

# (gradients, averaged in place; what else has to be finite) -> tensors that hold NaN if it was not in some process
Average = Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]]

STOP_READ_EVERY = 10  # steps; on a GPU reading waits for it


class Alone:
    """One process: all views are its own, and there is nobody to agree with.

    Attributes:
        on_draw: to be set; called with each view that is drawn anywhere, its index and scale, before it is rendered.
    """

    rank, size, here = 0, 1, 1  # number of this process; of all; of those on this machine
    first = True  # whether this is the one that writes, reports and shows

    def __init__(self) -> None:
        self.on_draw: Callable[[int, float], None] = lambda index, scale: None

    def share(self, drawn: list[int], scale: float) -> list[int]:
        """Of the views of a step, those to be rendered here."""
        return drawn

    def split(self, indices: Iterable[int], firsts: Iterable[int]) -> list[int]:
        """Of the views to be measured, those to be measured here; `firsts` are for the first process."""
        return sorted({*indices, *firsts})

    def agreed(self, stop: StopSignals) -> StopSignals | AgreedStop:
        """`stop` as all processes see it, after the same step."""
        return stop

    def averaging(self, terms: dict[str, Tensor], stop: StopSignals | AgreedStop) -> Average:
        """What averages the gradients of a step over the processes, and its losses `terms` (in place) with them."""
        return no_average

    def summing(self, density: DensityControl) -> AbstractContextManager[None]:
        """Inside, `density` observes the views of this process; afterwards it has observed those of all."""
        return contextlib.nullcontext()

    def of_last_view(self, scales: Tensor, wanted: bool) -> Tensor:
        """Those of the step's last view, wherever it was rendered; anything where they are not `wanted`."""
        return scales

    def least(self, number: int) -> int:
        """The smallest that any process has."""
        return number

    def collect(self, found: dict[int, Any]) -> dict[int, Any]:
        """What all processes found, sorted by the index."""
        return found

    def meet(self, **facts: Any) -> None:
        """Waits for all processes, which must have come to the same `facts`."""


def no_average(gradients: Sequence[Tensor], witnesses: Sequence[Tensor]) -> list[Tensor]:
    """Nobody else: nothing to average, and nothing to look at but one's own."""
    return []


ALONE = Alone()


class AgreedStop:
    """A `StopSignals` whose `signal` is seen by all processes after the same step, whichever of them it came to."""

    def __init__(self, stop: StopSignals) -> None:
        self.stop = stop
        self.signal: signal.Signals | None = None

    def agree(self) -> None:
        self.signal = self.stop.signal or signal.SIGTERM

    def release(self) -> None:
        self.stop.release()


class Ranks(Alone):
    """One of several processes that train one avatar together; see `join`."""

    def __init__(self, options: Options) -> None:
        """Raises UserError when the others cannot be found."""
        super().__init__()
        self.rank, self.size, self.here = _number("RANK"), _number("WORLD_SIZE"), _number("LOCAL_WORLD_SIZE")
        self.first = self.rank == 0
        self.output = Path(options.model.model_path)
        self._steps = 0
        try:
            # torchrun keeps its store over a restart: without a prefix a process would find the address of a dead one
            # there, if it comes before its successor, and wait for it without end.
            own = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
            address, port = os.environ.get("MASTER_ADDR", ""), _number("MASTER_PORT")
            shared = dist.TCPStore(address, port, is_master=own and self.first, wait_for_workers=False)
            store = dist.PrefixStore(f"restart {_restarts()}", shared)
            # No time limit of its own: the first process may evaluate, or show the avatar, while the others wait.
            # Who is gone is told by `Watch`.
            dist.init_process_group(store=store, rank=self.rank, world_size=self.size, timeout=timedelta(days=7))
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"process {self.rank} of {self.size} cannot reach the others ({one_line(error)[:200]}): start all of "
                "them with torchrun, and give --rdzv_endpoint an address that every machine reaches"
            ) from error
        self.watch = Watch(dist.PrefixStore("watch", store), self.rank, self.size, self.advice)

    # ---- the views ----------------------------------------------------------

    def share(self, drawn: list[int], scale: float) -> list[int]:
        self.watch.begins()
        for index in drawn:
            self.on_draw(index, scale)
        return drawn[self.rank :: self.size]

    def split(self, indices: Iterable[int], firsts: Iterable[int]) -> list[int]:
        firsts = set(firsts)
        rest = sorted(set(indices) - firsts)
        return sorted([*rest[self.rank :: self.size], *(firsts if self.first else ())])

    # ---- each step ----------------------------------------------------------

    def agreed(self, stop: StopSignals) -> AgreedStop:
        return AgreedStop(stop)

    def averaging(self, terms: dict[str, Tensor], stop: StopSignals | AgreedStop) -> Average:
        def average(gradients: Sequence[Tensor], witnesses: Sequence[Tensor]) -> list[Tensor]:
            assert isinstance(stop, AgreedStop)
            losses = [value.detach() for value in terms.values()]
            flags = [not_finite(list(witnesses)), stop.stop.signal is not None]
            tail = torch.stack([*losses, *(torch.as_tensor(f, dtype=losses[0].dtype).to(losses[0]) for f in flags)])
            flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), tail])
            self._call(dist.all_reduce, flat)
            flat /= self.size
            parts = flat.split([*(gradient.numel() for gradient in gradients), len(tail)])
            for gradient, part in zip(gradients, parts):
                gradient.copy_(part.view_as(gradient))
            *means, bad, stopped = parts[-1].unbind()
            terms.update(zip(terms, means))
            self._steps += 1
            if (flat.device.type == "cpu" or self._steps % STOP_READ_EVERY == 0) and bool(stopped > 0):
                stop.agree()
            return [torch.where(bad > 0, torch.nan, 0.0)]

        return average

    @contextlib.contextmanager
    def summing(self, density: DensityControl) -> Iterator[None]:
        names = ("gradient_sum", "seen", "max_radii")
        before = [getattr(density, name) for name in names]
        for name, tensor in zip(names, before):
            setattr(density, name, torch.zeros_like(tensor))
        yield
        sums = torch.stack([density.gradient_sum, density.seen])
        self._call(dist.all_reduce, sums)
        self._call(dist.all_reduce, density.max_radii, dist.ReduceOp.MAX)
        density.gradient_sum, density.seen = before[0] + sums[0], before[1] + sums[1]
        density.max_radii = torch.maximum(before[2], density.max_radii)

    def of_last_view(self, scales: Tensor, wanted: bool) -> Tensor:
        if wanted:
            scales = scales.detach().contiguous().clone()
            self._call(dist.broadcast, scales, self.size - 1)
        return scales

    # ---- now and then -------------------------------------------------------

    def least(self, number: int) -> int:
        return min(self._gather(number))

    def collect(self, found: dict[int, Any]) -> dict[int, Any]:
        return dict(sorted(item for part in self._gather(found) for item in part.items()))

    def meet(self, **facts: Any) -> None:
        everybody = self._gather(facts)
        for rank, theirs in enumerate(everybody):
            for name, value in theirs.items():
                if value != everybody[0][name]:
                    raise UserError(
                        f"{name}: {value} in process {rank}, {everybody[0][name]} in process 0; all need the same "
                        "capture and options, and one --model_path, in a folder that all machines share"
                    )

    def _gather(self, value: Any) -> list[Any]:
        everybody = [None] * self.size
        self._call(dist.all_gather_object, everybody, value)
        return everybody

    def _call(self, operation: Callable[..., Any], *arguments: Any) -> None:
        """`operation` among all processes; ends this one in order when that fails, because another is gone."""
        self.watch.waits()
        try:
            operation(*arguments)
        except RuntimeError as error:
            self.watch.explain_break(error)

    # ---- the end ------------------------------------------------------------

    def __enter__(self) -> Ranks:
        self.watch.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """The end: of all, in order; or of one, whose error the others leave to it to tell."""
        if error is None or isinstance(error, (SystemExit, Lost)):
            self.watch.end()
            if error is None:
                dist.destroy_process_group()
            return
        told = self.watch.tell()
        self.watch.end(failed=True)
        if isinstance(error, UserError):
            if not told:
                raise SystemExit(2)
            raise UserError(f"process {self.rank} of {self.size}: {error}") from error

    def advice(self) -> str:
        """How to go on, for a sentence about a process that is gone."""
        kept = checkpoint.latest(self.output)
        if kept is None:
            return "no checkpoint was written yet: start again"
        return f"{kept} and all before it are kept: the same command with --start_checkpoint auto goes on from there"


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except (KeyError, ValueError) as error:
        raise UserError(f"the environment's {name} is no number: start several processes with torchrun") from error


def _restarts() -> int:
    """How often torchrun has started this training anew (`--max_restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def several_processes() -> bool:
    """Whether torchrun started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ


def leads() -> bool:
    """Whether this process is the one of several that speaks."""
    return not several_processes() or os.environ["RANK"] == "0"


def join(stack: ExitStack, options: Options) -> tuple[Alone, Options]:
    """The processes of this run, until `stack` ends, and the options of this one.

    After a restart by torchrun the run goes on from its newest checkpoint.

    Raises:
        UserError: the others cannot be found, or there are fewer GPUs than processes.
    """
    run = options.run
    if _restarts():
        run = dataclasses.replace(run, start_checkpoint="auto", overwrite=False)
    ranks: Alone = ALONE
    if several_processes():
        if run.device != "cpu" and torch.cuda.is_available():
            local, present = _number("LOCAL_RANK"), torch.cuda.device_count()
            if local >= present:
                raise UserError(
                    f"torchrun started {_number('LOCAL_WORLD_SIZE')} processes on a machine with {present} GPUs: give "
                    f"--nproc_per_node {present}, or train on --device cpu"
                )
            torch.cuda.set_device(local)
        ranks = stack.enter_context(Ranks(options))
        # torchrun sets one thread for each; the cores are theirs to share.
        run = dataclasses.replace(run, threads=run.threads or max(1, usable_cores() // ranks.here))
        if not ranks.first:
            run = dataclasses.replace(run, quiet=True, port=None)
    return ranks, dataclasses.replace(options, run=run)


def take_note(avatar: GaussianModel, region: RegionAdaptiveLoss | NoRegionWeights, views: Views) -> Callable[..., None]:
    """(index of a training view, its scale) -> None: what a process keeps of a view that any of them renders."""
    flame, parameters = avatar.flame, avatar.flame_parameters

    def note(index: int, scale: float) -> None:
        camera = views.cameras["train"][index]
        if flame is None or parameters is None:
            return
        if not region.knows(index):  # found at the first visit, and part of the checkpoint
            with torch.no_grad():
                region.weights(index, camera.scaled(scale), flame.vertices(parameters, camera.timestep))
        parameters.touch(camera.timestep)

    return note
