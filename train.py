"""Trains a Gaussian head avatar (or a static scene).

    python train.py -s DATA -m OUT --eval --bind_to_mesh --white_background

Read from top to bottom: parse, build, loop. `python train.py --help` lists the options; `doc/conventions.md` says what
the quantities mean. What a part is made of stands in `training/setup.py`, who listens in `training/listeners.py`.
"""

from __future__ import annotations

import utils.threads  # noqa: F401  (before PyTorch: sets how its threads wait)

# isort: split
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from arguments import Options, milestones, notes, parse_train, public
from evaluation.debris import speck_share
from evaluation.evaluate import calibrated
from evaluation.metrics import format_table
from evaluation.pose_refinement import SplitViews
from evaluation.results import write_results
from gaussian_renderer import choose_device_and_rasterizer
from innovations.amp import MixedPrecision
from innovations.warm_start import CLASSICAL_START
from ops.types import RenderOut
from scene.gaussian_model import GaussianModel
from training import checkpoint, innovative, setup
from training.former import build_former
from training.guards import BadSteps, check_finite, explain_failure
from training.listeners import Checkpoints, Evaluation, SavedAvatars
from training.live import build_live, open_door
from training.objective import Objective, Terms, mean_terms
from training.ranks import Alone, join, leads, take_note
from training.sampler import ShuffledSampler
from training.stages import NO_STAGES, Stages
from training.views import Views
from utils.errors import run_script
from utils.files import refuse_escaping_links
from utils.interrupt import StopSignals

if TYPE_CHECKING:
    from viewer.server import Doorkeeper


def train(options: Options, stages: Stages = NO_STAGES) -> dict[str, Any]:
    """One whole run; returns what `results.json` holds.

    Args:
        stages: a stop-watch for benchmarks; the default measures nothing.

    Raises:
        UserError: the options, the data or another run in the same folder do not let it, or too little memory.
        SystemExit: SIGINT, SIGTERM or SIGHUP came; everything is saved.
    """
    with ExitStack() as stack:
        ranks, options = join(stack, options)
        stack.enter_context(explain_failure(options))
        door = open_door(stack, options.run)  # None: no viewer
        return run_training(public(options), stages, stack, door, ranks)


def run_training(
    options: Options, stages: Stages, stack: ExitStack, door: Doorkeeper | None, ranks: Alone
) -> dict[str, Any]:
    """`train`, to be read from top to bottom; `stack` ends with it."""
    optim, run, extra = options.optimization, options.run, options.innovations
    output = Path(options.model.model_path)
    device, backend, rasterize = choose_device_and_rasterizer(run.device, options.pipeline.rasterizer, run.threads)
    torch.autograd.set_detect_anomaly(run.detect_anomaly)

    # ---- build: nothing is written before all of the input is known to be good --------------------
    refuse_escaping_links(output)
    present = checkpoint.saved_in(output)
    resume = checkpoint.to_resume(output, options)  # None: from the start
    dataset = setup.load_capture(options)
    refinable = setup.refinable(dataset, extra)
    avatar = setup.build_avatar(options.model, dataset, resume, seed=run.seed, device=device)
    former = build_former(options, dataset, avatar)
    innovative.build_appearance(extra, avatar, dataset)
    setup.claim_output(stack, output, options, dataset, present, resume, ranks)
    views = Views(dataset, options, device, shared=ranks.here > 1)

    # Switched off, each of these does nothing: the loop has no question to ask.
    progressive = innovative.build_progressive(extra)
    region = innovative.build_region(extra, avatar, quiet=run.quiet)
    color, color_terms = innovative.build_color(extra, views, seed=run.seed)
    amp = MixedPrecision(extra.use_amp, device)
    warm = innovative.build_warm_start(extra)
    innovative.warm_up(avatar, CLASSICAL_START if resume else warm, views)

    objective = Objective(optim, avatar, color_terms, extra.lambda_alpha, former.perceptual, former.temporal)
    optimizer, flame_optimizer = setup.build_optimizers(options, avatar, warm, dataset.extent, ranks)
    optimizers = [optimizer, *flame_optimizer.values(), *color.optimizers]
    reporter = setup.build_reporter(options, output, resume, views.measured, ranks)
    reporter.gauges = partial(setup.gauges, optimizer, progressive)
    density = setup.build_density(options, avatar, optimizer, warm, dataset.extent, reporter, former.adaptive, ranks)
    sampler = ShuffledSampler(len(dataset.train), seed=run.seed + 2)
    bad_steps = BadSteps(reporter, partial(checkpoint.latest, output))
    parts = {
        "optimizer": optimizer,
        "density": density,
        "sampler": sampler,
        "reporter": reporter,
        "amp": amp,
        "region": region,
        "color": color,
        "bad_steps": bad_steps,
        **flame_optimizer,
    }
    first = checkpoint.restore(parts, resume) + 1
    setup.announce(options, reporter, resume, dataset, avatar, f"rasterizer {backend} on {device}", ranks)

    draw = setup.build_draw(options, views.background, rasterize)
    debug_from = 0 if options.pipeline.debug else run.debug_from
    due, shown = milestones(options), setup.shown_densifications(optim)
    asked = stack.enter_context(StopSignals())  # only now: before, nothing is lost, and waiting would be for nothing
    stop = ranks.agreed(asked)
    state = {"avatar": avatar, **({"flame": avatar.flame_parameters} if avatar.flame_parameters else {}), **parts}
    evaluation = Evaluation(avatar, views, calibrated(draw, color), region, reporter, due.test, run, ranks)
    to_save = innovative.build_finish(extra, avatar, views, draw)
    saved = SavedAvatars(output, avatar, color, reporter, due.save, to_save, ranks)
    live = build_live(stack, door, options, avatar, color, dataset, views, (backend, rasterize), reporter, asked)
    listeners = [evaluation, saved, live, Checkpoints(output, options, state, reporter, stop, ranks)]
    ranks.on_draw = take_note(avatar, region, views)

    # ---- loop -------------------------------------------------------------------------------------
    for step in range(first, optim.iterations + 1):
        optimizer.set_step(step)
        color.set_step(step)
        avatar.active_sh_degree = min(avatar.sh_degree, step // optim.sh_increase_interval)
        scale = progressive.scale(step)
        if step == first or progressive.switch(step):
            with reporter.pause():
                if progressive.switch(step):
                    reporter.say(progressive.switch(step))
                views.training(0, scale)  # makes the images of this scale
        batch, rendered = list[Terms](), list[RenderOut]()
        drawn = [sampler.next() for _ in range(ranks.size * extra.batch_views)]
        names = [views.cameras["train"][index].name for index in drawn]
        for index in ranks.share(drawn, scale):
            with stages("data"):
                camera, ground_truth, alpha = views.training(index, scale)
            with stages("avatar"):
                gaussians, vertices = avatar(camera.timestep)
            with stages("forward"):
                out = draw(gaussians, camera, sh_degree=avatar.active_sh_degree)
            with stages("loss"):
                with amp.autocast():
                    image = color(out.image, camera.camera_id, out.alpha)
                weights = region.weights(index, camera, vertices)
                moment = (camera.timestep, index)
                batch.append(objective(gaussians, vertices, out, image, ground_truth, alpha, weights, *moment))
                rendered.append(out)
        with stages("backward"):
            terms = mean_terms(batch)
            losses, statistics = [of_view["total"] for of_view in batch], [out.means2d for out in rendered]
            amp.backward(losses, statistics, optimizers, ranks.averaging(terms, stop))
        if 0 <= debug_from <= step:
            check_finite(step, ", ".join(names), avatar, terms)
        with stages("optimizer"):
            for part in optimizers:
                amp.step(part, step)
                part.zero_grad()
        with stages("report"):
            reporter.step(step, terms, points=len(avatar))
            bad_steps.note(step, names, amp.bad)
        for listener in listeners:
            listener.before_density(step)
        with stages("density"):
            with ranks.summing(density):
                for out in rendered:
                    density.observe(out, scale, views=extra.batch_views, skip=amp.bad)
            grown = density.step(step, ranks.of_last_view(gaussians.scales, density.due(step)))
        if grown and grown.line:
            reporter.say(grown.line, shown=step in shown)
            reporter.scalars(step, grown.scalars)
        for listener in listeners:
            listener.end_of_step(step)
        stages.end_iteration()
    stop.release()
    return finish(options, evaluation, saved, refinable, bad_steps, backend)


def finish(
    options: Options,
    evaluation: Evaluation,
    saved: SavedAvatars,
    refinable: SplitViews | None,
    bad_steps: BadSteps,
    backend: str,
) -> dict[str, Any]:
    """Measures the saved avatar, which is what everybody opens, and writes results.json; returns what that holds.

    Of several processes the first does, and the others help it measure and return nothing.
    """
    evaluation.ranks.meet()  # the avatar is saved
    iterations, trained, reporter = options.optimization.iterations, saved.avatar, saved.reporter
    avatar = GaussianModel.load(
        saved.folder(iterations), flame=trained.flame, flame_parameters=trained.flame_parameters, device=trained.device
    )
    measured, remarks = evaluation.final(avatar, refinable, options.innovations.refine_test_poses)
    if not evaluation.ranks.first:
        return {}
    specks = speck_share(avatar, evaluation.views.background)
    if specks is not None:
        remarks.add(f"specks in the background's color: {specks:.4%} of the avatar's area")
    left_out = bad_steps.summary()
    if left_out["count"]:
        remarks.add(f"{left_out['count']} steps were left out because the loss or a gradient was not finite")
    reporter.close()  # first: results.json says that nothing is missing
    path = Path(options.model.model_path) / "results.json"
    results = write_results(
        path,
        metrics=measured,
        iterations=iterations,
        points=len(avatar),
        seconds=reporter.seconds,
        iterations_per_second=reporter.iterations_per_second,
        backend=backend,
        device=avatar.device,
        steps_left_out=left_out,
        specks=specks,
    )
    reporter.say("\n".join([format_table(measured), *sorted(remarks)]))
    reporter.say(
        f"{results['iterations_per_second']:.1f} iterations/s (median), {len(avatar):,} Gaussians, "
        f"{results['peak_memory']['host_bytes'] / 1e9:.2f} GB of memory; results in {path}"
    )
    return results


def main() -> None:
    options = parse_train(sys.argv[1:])
    for note in notes(options) if leads() else ():
        print(note)
    train(options)


if __name__ == "__main__":
    run_script(main)
