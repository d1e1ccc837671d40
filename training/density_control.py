"""When and where Gaussians are added and removed.

`DensityControl` watches the gradient of every Gaussian's screen position and,
on schedule, clones, splits and prunes. It only decides (index lists and new
values); `training/row_surgery.py` carries it out on parameters and optimizer alike.
Which Gaussians are worth it is for a policy to say, a callable: `fixed_threshold`
is the classical one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ops import density
from ops.rotations import rotate
from ops.types import Candidates, RenderOut, Selection
from scene.gaussian_model import GaussianModel
from training.row_surgery import gather_rows, overwrite
from utils.memory import available_memory

CHILDREN = 2  # Gaussians that a split leaves in place of one
SHRINK = 0.8 * CHILDREN  # children are this much smaller than their parent (Kerbl et al. 2023, section 5.2)
MAX_SCREEN_RADIUS = 20  # pixels; larger ones are pruned once opacities have been reset
MAX_WORLD_SCALE = 0.1  # of the scene extent; likewise
RESET_OPACITY = 0.01

# Bytes. What a Gaussian takes as long as it lives (parameters, gradients, moments and what a step computes from them;
# measured: 119,000 more of them took 0.32 GB), what of it is there twice while rows are added, and what is left alone
# for evaluations and files.
MEMORY_HELD = 2_700
MEMORY_MOVED = 700
MEMORY_RESERVE = 256 << 20

# iteration, what is known of the Gaussians -> what to clone and split
Policy = Callable[[int, Candidates], Selection]


@dataclass(frozen=True)
class DensitySchedule:
    """Iterations and limits of `DensityControl`, named as on the command line."""

    densify_from_iter: int
    densify_until_iter: int
    densification_interval: int
    opacity_reset_interval: int
    percent_dense: float  # of the scene extent: larger Gaussians are split, smaller ones cloned
    white_background: bool  # then opacities are also reset at densify_from_iter
    resets: bool = True  # whether opacities are ever reset
    prune_opacity: float = 0.005  # fainter ones are removed


@dataclass(frozen=True)
class DensityReport:
    """What one densification did."""

    cloned: int
    split: int
    pruned: int
    total: int
    clone_threshold: float = 0.0  # NDC units
    split_threshold: float = 0.0  # NDC units
    policy: str = ""  # name of a policy that wants to be told, else empty

    @property
    def line(self) -> str:
        """What to print and log; empty for a silent policy."""
        if not self.policy:
            return ""
        return (
            f"[{self.policy}] Clone threshold: {self.clone_threshold:.3g} "
            f"Split threshold: {self.split_threshold:.3g} "
            f"(cloned {self.cloned:,}, split {self.split:,}, pruned {self.pruned:,}, total {self.total:,})"
        )

    @property
    def scalars(self) -> dict[str, float]:
        """The same as curves, by their TensorBoard names."""
        return {
            "points/cloned": self.cloned,
            "points/split": self.split,
            "points/pruned": self.pruned,
            "densify/clone_threshold": self.clone_threshold,
            "densify/split_threshold": self.split_threshold,
        }


class DensityControl:
    """Adaptive density control (Kerbl et al. 2023, section 5), bound or unbound."""

    def __init__(
        self,
        model: GaussianModel,
        optimizer: Optimizer,
        schedule: DensitySchedule,
        policy: Policy,
        *,
        extent: float,
        generator: torch.Generator,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.policy = policy
        self.extent = extent  # metres
        self.generator = generator  # on the CPU, so that every device draws the same children
        self._clear()

    def _clear(self) -> None:
        count, device = len(self.model), self.model.device
        self.gradient_sum = torch.zeros(count, device=device)  # of NDC gradient norms
        self.seen = torch.zeros(count, device=device)  # views in which it was visible
        self.max_radii = torch.zeros(count, device=device)  # pixels of the full image, largest since then

    def observe(self, out: RenderOut, scale: float = 1.0, views: int = 1, *, skip: Tensor | bool = False) -> None:
        """Adds one rendered view to the statistics; call after backward. No host synchronisation.

        Args:
            scale: resolution of the view relative to the full image. Radii are
                brought to full pixels. The gradient needs no such factor: it is
                that of a mean over the image, per NDC unit, and neither knows
                the number of pixels (doc/training_time.md has the figures).
            views: in the step; its loss was divided by them, which the statistic undoes.
            skip: leaves the view out; a bool tensor [] on the device, with a gradient of zero there, or a plain bool.
        """
        gradient, radii = out.means2d.grad, out.radii
        if gradient is None:
            raise ValueError("observe() needs the gradient of means2d: call it after backward()")
        if not len(gradient) == len(radii) == len(self.seen):
            raise ValueError(
                f"observe() got {len(gradient)} gradients and {len(radii)} radii for {len(self.seen)} Gaussians"
            )
        if isinstance(skip, Tensor):
            radii = radii * ~skip  # seen by nobody
        elif skip:
            return
        if views != 1:
            gradient = gradient * views
        if scale != 1.0:
            radii = torch.round(radii / scale).to(torch.int32)
        density.observe(gradient, radii, self.gradient_sum, self.seen, self.max_radii)

    def due(self, step: int) -> bool:
        """Whether `step` is an iteration at which Gaussians are added and removed."""
        plan = self.schedule
        return plan.densify_from_iter < step < plan.densify_until_iter and step % plan.densification_interval == 0

    def reset_due(self, step: int) -> bool:
        """Whether `step` is an iteration at which opacities are lowered."""
        plan = self.schedule
        if step >= plan.densify_until_iter or not plan.resets:
            return False
        # On white the classical near-black start has to be torn down once before anything grows from it.
        return step % plan.opacity_reset_interval == 0 or (plan.white_background and step == plan.densify_from_iter)

    def step(self, step: int, world_scales: Tensor) -> DensityReport | None:
        """Does what is due at iteration `step`, after the optimizer's step.

        Args:
            world_scales: [N, 3] metres, of the view just rendered: a bound
                Gaussian's size depends on the pose, and any visited pose will do.
        """
        report = self._densify(step, world_scales.detach()) if self.due(step) else None
        if self.reset_due(step):
            opacity = self.model.opacity
            limit = torch.tensor(RESET_OPACITY).logit().item()
            overwrite(opacity, self.optimizer, opacity.detach().clamp(max=limit))
        return report

    @torch.no_grad()
    def _densify(self, step: int, world_scales: Tensor) -> DensityReport:
        model = self.model
        size = world_scales.amax(dim=1)
        selected = self.policy(
            step,
            Candidates(
                statistic=self.gradient_sum / self.seen.clamp(min=1.0),
                seen=self.seen > 0,
                large=size > self.schedule.percent_dense * self.extent,
                radii=self.max_radii,
            ),
        )

        kept = torch.nonzero(~selected.split).squeeze(1)
        cloned = torch.nonzero(selected.clone).squeeze(1)
        parents = torch.nonzero(selected.split).squeeze(1).repeat(CHILDREN)
        # New rows: the survivors, the clones, the children.
        source = torch.cat([kept, cloned, parents])
        fresh = torch.ones(len(source), dtype=torch.bool, device=source.device)
        fresh[: len(kept)] = False
        children = slice(len(source) - len(parents), None)

        xyz = model.xyz[source]
        scaling = model.scaling[source]
        size = size[source]
        radii = self.max_radii[source]
        xyz[children] += self._jitter(parents)
        scaling[children] -= torch.log(torch.tensor(SHRINK))
        size[children] /= SHRINK
        # A clone keeps what was seen of its parent, or pruning by size on screen would never find anything;
        # only children, which nobody has seen yet, start from zero.
        radii[children] = 0.0

        drop = model.opacity[source].sigmoid().squeeze(1) < self.schedule.prune_opacity
        if step > self.schedule.opacity_reset_interval:
            drop |= (radii > MAX_SCREEN_RADIUS) | (size > MAX_WORLD_SCALE * self.extent)
        if model.binding is not None and model.flame is not None:
            drop &= ~last_of_triangle(
                drop, model.binding[source], model.opacity[source].squeeze(1), model.flame.faces.shape[0]
            )

        keep = torch.nonzero(~drop).squeeze(1)
        source = source[keep]
        model.replace_rows(
            gather_rows(
                model.parameters(), self.optimizer, source, fresh[keep], {"xyz": xyz[keep], "scaling": scaling[keep]}
            ),
            binding=None if model.binding is None else model.binding[source],
        )
        self._clear()
        return DensityReport(
            cloned=len(cloned),
            split=len(parents) // CHILDREN,
            pruned=len(drop) - len(keep),
            total=len(keep),
            policy=selected.name,
            clone_threshold=selected.clone_threshold,
            split_threshold=selected.split_threshold,
        )

    def _jitter(self, parents: Tensor) -> Tensor:
        """[M, 3] offsets of split children: a draw from the parent's own distribution.

        From the raw scales: those and the positions are in the same unit, meters or triangles. With scales in
        meters the children of a bound Gaussian would land within a hundredth of it.
        """
        model = self.model
        noise = torch.randn(len(parents), 3, generator=self.generator).to(model.device)
        quats = torch.nn.functional.normalize(model.rotation[parents], dim=1)
        return rotate(quats, noise * model.scaling[parents].exp())

    def state_dict(self) -> dict[str, Any]:
        return {
            "gradient_sum": self.gradient_sum,
            "seen": self.seen,
            "max_radii": self.max_radii,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.model.device
        for name in ("gradient_sum", "seen", "max_radii"):
            mine, theirs = getattr(self, name), state[name]
            if theirs.shape != mine.shape or theirs.dtype != mine.dtype:  # the kernels trust them
                raise ValueError(f"{name} has shape {tuple(theirs.shape)}, expected {tuple(mine.shape)}")
            setattr(self, name, theirs.to(device))
        self.generator.set_state(state["generator"])


def fixed_threshold(value: float) -> Policy:
    """The classical policy: whatever passes one gradient threshold; small ones are cloned, large ones split."""

    def select(step: int, candidates: Candidates) -> Selection:
        passes = candidates.statistic >= value
        return Selection(
            clone=passes & ~candidates.large,
            split=passes & candidates.large,
            clone_threshold=value,
            split_threshold=value,
        )

    return select


def while_memory_lasts(
    policy: Policy,
    device: torch.device,
    warn: Callable[[str], None],
    least: Callable[[int], int] = lambda free: free,  # of the free bytes of all processes that grow the same avatar
) -> Policy:
    """`policy`, until what it wants to add does not fit into memory: then nothing is added, and `warn` told once.

    A run that goes on with the Gaussians it has is worth more than one that the system kills.
    """
    warned = False

    def select(step: int, candidates: Candidates) -> Selection:
        nonlocal warned
        chosen = policy(step, candidates)
        grown = int(chosen.clone.sum() + chosen.split.sum())
        needed = MEMORY_RESERVE + MEMORY_HELD * grown + MEMORY_MOVED * (len(chosen.clone) + grown)
        free = least(available_memory(device))
        if free >= needed:
            return chosen
        if grown and not warned:
            warned = True
            warn(
                f"warning: iteration {step}: {grown:,} Gaussians are not added, because only {free / 1e6:,.0f} MB of "
                f"memory are free and {needed / 1e6:,.0f} MB would be needed; training goes on with the "
                f"{len(chosen.clone):,} there are"
            )
        return chosen._replace(clone=torch.zeros_like(chosen.clone), split=torch.zeros_like(chosen.split))

    return select


def last_of_triangle(drop: Tensor, binding: Tensor, opacity: Tensor, triangles: int) -> Tensor:
    """[N] bool: the one Gaussian to spare in every triangle that `drop` would empty.

    A triangle without Gaussians can never grow new ones, so its patch of skin
    would stay a hole for ever. The most opaque one is spared, the first of equals.
    """
    left = torch.bincount(binding[~drop], minlength=triangles)
    candidate = drop & (left == 0)[binding]
    best = torch.full((triangles,), -torch.inf, dtype=opacity.dtype, device=opacity.device)
    best.scatter_reduce_(0, binding[candidate], opacity[candidate], "amax")
    candidate &= opacity == best[binding]
    row = torch.arange(len(drop), device=drop.device)
    first = torch.full((triangles,), len(drop), dtype=row.dtype, device=row.device)
    first.scatter_reduce_(0, binding[candidate], row[candidate], "amin")
    return candidate & (row == first[binding])
