"""Shows a trained avatar (or static scene) in a browser.

    python view.py -m OUT                 then open the address that it prints
    python view.py -m OUT -t OTHER_DATA   with the motion of another capture
    python view.py -m OUT --motion sweep  or with any motion that render.py knows

A training may go on in OUT meanwhile: what it saves is shown as soon as it is there. Ctrl-C ends it.
"""

from __future__ import annotations

import utils.threads  # noqa: F401  (before PyTorch: sets how its threads wait)

# isort: split
import sys
import time
from pathlib import Path

from arguments import ViewOptions, parse_view
from scene import Avatar
from scene.avatar import NEWEST, find_saved, open_avatar
from scene.dataset import dataset_of, load_dataset
from scene.motion import chosen_motion
from scene.motion.blendshapes import mode_names
from scene.motion.rows import FPS
from utils.errors import UserError, run_script
from utils.files import refuse_escaping_links
from viewer.capture import shots_of
from viewer.server import Doorkeeper, listen
from viewer.session import Viewer
from viewer.stage import Shots, Stage

LOOK_AGAIN = 2.0  # seconds between two looks for what was saved meanwhile


def open_stage(options: ViewOptions) -> Stage:
    """The avatar with its motion, and the capture's cameras where the capture is there."""
    output = Path(options.model_path)
    for name in ("source_path", "target_path"):
        folder = getattr(options, name)
        if folder and not Path(folder).is_dir():
            raise UserError(f"--{name} {folder} is not a folder")
    refuse_escaping_links(output)
    avatar = load(options, find_saved(output, options.iteration)[0])
    if avatar.note:
        print(f"note: {avatar.note}", file=sys.stderr)
    names = mode_names(avatar.head_file, avatar.head.n_expr) if avatar.head is not None else ()
    stage = Stage(avatar, output, capture_shots(options, avatar), names)
    stage.status.headline = headline(avatar)
    return stage


def load(options: ViewOptions, iteration: int) -> Avatar:
    """The avatar of an iteration, moved as the options say."""
    avatar = open_avatar(options, iteration)
    if options.target_path:
        target = Path(options.target_path)
        avatar.motion()  # a static scene has none, and says so
        avatar.follow(
            load_dataset(target, bind_to_mesh=True, eval_split=avatar.options.model.eval, white_background=False),
            target,
        )
    if options.motion is not None:
        avatar.motion()  # likewise
        avatar.play(chosen_motion(options, avatar, options.motion).at_rate(FPS).rows)
    return avatar


def capture_shots(options: ViewOptions, avatar: Avatar) -> Shots:
    """The cameras of the capture it was trained on; none if that is not here, or somebody else's motion is shown."""
    source = options.source_path or avatar.options.model.source_path
    if options.target_path or options.motion or not source or not Path(source).is_dir():
        return {}
    capture = dataset_of(avatar.options, source)
    views = capture.train + capture.val + capture.test
    return shots_of(views, avatar.rows(capture.timesteps), capture.background)


def headline(avatar: Avatar) -> str:
    """What the panel says of it."""
    return f"iteration {avatar.iteration:,} · {len(avatar.model):,} Gaussians"


def follow_training(options: ViewOptions, viewer: Viewer) -> None:
    """Shows the newest of what is saved, unless an iteration was asked for; a file that is not whole has to wait."""
    if options.iteration != NEWEST:
        return
    try:
        newest = find_saved(Path(options.model_path))[0]
        if newest != viewer.stage.avatar.iteration:
            viewer.show(load(options, newest))
            viewer.stage.status.headline = headline(viewer.stage.avatar)
    except (UserError, OSError):  # it is being started over, or written this moment
        return


def view(options: ViewOptions) -> None:
    """Everything `view.py` does, until Ctrl-C."""
    with listen(options.ip, options.port) as listening:  # first: a port in use is told at once
        door = Doorkeeper(listening, options.viewer_token)
        stage = open_stage(options)
        if door.warning:
            print(f"warning: {door.warning}", file=sys.stderr)
        viewer = Viewer(door, stage)
        if not options.quiet:
            print(f"{stage.avatar.path}: rasterizer {stage.avatar.backend}; Ctrl-C ends it")
        print(door.url, flush=True)
        try:
            serve(options, viewer)
        except KeyboardInterrupt:
            pass
        finally:
            viewer.close()


def serve(options: ViewOptions, viewer: Viewer) -> None:
    """Draws for ever."""
    looked = time.monotonic()
    while True:
        if not viewer.turn():
            viewer.wait(LOOK_AGAIN)
        if time.monotonic() - looked > LOOK_AGAIN:
            follow_training(options, viewer)
            looked = time.monotonic()


def main() -> None:
    view(parse_view(sys.argv[1:]))


if __name__ == "__main__":
    run_script(main)
