"""Several processes for one avatar, and several views per step: how fast, and how good.

    python -m benchmarks.ranks -s DATA --out DIR [--iterations 300] [--rounds 3] [-- train.py flags]
    python -m benchmarks.ranks -s DATA --out DIR --rules [--views 1 2 4 8] [--iterations 2000] [-- train.py flags]
    python -m benchmarks.ranks -s DATA --out DIR --overlap [--rounds 50]

The first trains with two views per step, in turns by one process with two threads and by two processes (torchrun) with
one thread each: the same result. Speeds are the medians of the rounds; bytes a step are what one process sends.
The second trains with so many `--views` per step, by each rule of `--lr_views_rule`, as many views in all: so many
times fewer iterations, with the schedule shortened alike (`--scale_schedule`).
The third asks what sending gradients while others are still computed could gain: those of color and opacity, which
are most of the message, are known before the backward pass comes to the rig and the head mesh. Two processes with one
thread each, gloo; one after the other and both at once, in turns.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from arguments import parse_train
from arguments.innovation_options import LR_VIEWS_RULES
from benchmarks.common import HEAD, ROOT, Row, Table, new_parser, publish
from benchmarks.scale_model import NUMBERS
from training.setup import build_avatar, load_capture
from utils.errors import UserError, run_script

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def trained(options: argparse.Namespace, name: str, flags: Sequence[str], launcher: Sequence[str] = ()) -> Any:
    """The results.json of a training in `--out`/name; one that is there with these flags is taken.

    Raises:
        UserError: it failed.
    """
    folder = options.out / name
    words = [*launcher, str(ROOT / "train.py"), "-s", str(options.source_path), "-m", str(folder)]
    words += [*HEAD, "--metrics", "psnr", "ssim", "flip", "--quiet", "--device", "cpu", *flags, *options.extra]
    note, results = folder / "words.json", folder / "results.json"
    if not (note.is_file() and results.is_file() and json.loads(note.read_text()) == words):
        shutil.rmtree(folder, ignore_errors=True)
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"the training in {folder} failed: {done.stderr.strip().splitlines()[-1]}")
        note.write_text(json.dumps(words))
    return json.loads(results.read_text())


def speed_row(options: argparse.Namespace) -> list[Row]:
    """Both ways to render two views per step, in turns."""
    flags = ["--iterations", str(options.iterations), "--interval", str(2**40), "--test_iterations", str(2**40)]
    alone, together = [], []
    for number in range(options.rounds):
        alone.append(trained(options, f"alone_{number}", [*flags, "--batch_views", "2", "--threads", "2"]))
        together.append(trained(options, f"together_{number}", [*flags, "--threads", "1"], TORCHRUN))
    rates = [statistics.median(run["iterations_per_second"] for run in runs) for runs in (alone, together)]
    points = together[0]["points"]
    return [
        {
            "Gaussians": f"{points:,}",
            "1 process, 2 threads: steps/s": round(rates[0], 1),
            "2 processes, 1 thread each: steps/s": round(rates[1], 1),
            "speed": round(rates[1] / rates[0], 2),
            "MB sent a step": round(4 * NUMBERS * points / 1e6, 2),
            "Gaussians differ by": abs(points - alone[0]["points"]),
        }
    ]


def rule_rows(options: argparse.Namespace) -> list[Row]:
    """Quality after as many views."""
    rows = []
    for views in options.views:
        for rule in LR_VIEWS_RULES if views > 1 else LR_VIEWS_RULES[:1]:
            length = ["--iterations", str(options.iterations // views), "--scale_schedule"]
            run = trained(options, f"{views}_{rule}", [*length, "--batch_views", str(views), "--lr_views_rule", rule])
            row: Row = {"views per step": views, "steps": options.iterations // views, "rule": rule}
            for split, metrics in run["metrics"].items():
                row.update({f"{split} {name}": f"{metrics[name]:.{digits}f}" for name, digits in DIGITS.items()})
            rows.append({**row, "Gaussians": f"{run['points']:,}"})
    return rows


DIGITS = {"psnr": 2, "ssim": 4, "flip": 4}


def overlap_rows(options: argparse.Namespace) -> list[Row]:
    """Milliseconds of the exchange and of the backward pass beside it: medians of the slower process."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(exchange, (options, Path(folder)), nprocs=2)
        times = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    return [{name: round(max(statistics.median(of[name]) for of in times), 2) for name in times[0]}]


def exchange(rank: int, options: argparse.Namespace, folder: Path) -> None:
    """One of the two processes; its times in `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    given = parse_train(["-s", str(options.source_path), "-m", str(folder), *HEAD, "--device", "cpu"])
    dataset = load_capture(given)
    avatar = build_avatar(given.model, dataset, None, seed=0, device=torch.device("cpu"))
    message = torch.ones(len(avatar), 49)  # 16 harmonics of 3 colors, and the opacity
    times: dict[str, list[float]] = {"MB": [4e-6 * message.numel()]}
    for number in range(options.rounds):
        for name in ("exchange, ms", "backward, ms", "one after the other, ms", "both at once, ms"):
            gaussians, _ = avatar(dataset.train[number % len(dataset.train)].camera.timestep)
            parts = (gaussians.means, gaussians.quats, gaussians.scales)
            gradients = [torch.ones_like(part) for part in parts]
            dist.barrier()
            start = time.perf_counter()
            if name.startswith("both"):
                sent = dist.all_reduce(message, async_op=True)
                torch.autograd.backward(parts, gradients)
                sent.wait()
            else:
                if not name.startswith("exchange"):
                    torch.autograd.backward(parts, gradients)
                if not name.startswith("backward"):
                    dist.all_reduce(message)
            times.setdefault(name, []).append(1e3 * (time.perf_counter() - start))
            message /= 2
    (folder / f"{rank}.json").write_text(json.dumps(times))
    dist.destroy_process_group()


def main() -> None:
    parser = new_parser(__doc__, "source_path", "out", "json")
    parser.add_argument("--iterations", type=int, default=300, help="of a run, with one view per step")
    parser.add_argument("--rounds", type=int, default=3, help="of the speed")
    parser.add_argument("--rules", action="store_true", help="quality by the views per step, not the speed")
    parser.add_argument("--views", type=int, nargs="+", default=[1, 2, 4, 8], help="per step, with --rules")
    parser.add_argument("--overlap", action="store_true", help="sending gradients beside the backward pass")
    options, extra = parser.parse_known_args()
    options.extra = [word for word in extra if word != "--"]
    options.out, options.source_path = options.out.absolute(), options.source_path.absolute()
    if options.overlap:
        publish(options, [Table("Sending gradients beside the backward pass of rig and head:", overlap_rows(options))])
    elif options.rules:
        title = f"Quality by views per step, {options.iterations:,} views in all:"
        publish(options, [Table(title, rule_rows(options))])
    else:
        publish(options, [Table("Two views per step:", speed_row(options))])


if __name__ == "__main__":
    run_script(main)
