"""What many machines do, simulated: failures, checkpoints, restarts, and several processes for one avatar.

    python -m benchmarks.scale_model [--subjects 400] [--machines 20] [--hours 2] [--mtbf 200] [--save 1.5] ...

The first table: subjects of `--hours` each on `--machines`, each of which fails every `--mtbf` hours on average
(exponentially, as long as it computes) and is replaced after `--restart` seconds; by the time between two
checkpoints, each of which takes `--save` seconds. The model: after a failure, what was computed since the last
checkpoint is lost. Young (1974) gives the best time between checkpoints as sqrt(2 save mtbf), Daly (2006) refines
it; the simulation, which knows neither, is to agree.

The second: one avatar on n processes, t = compute / n + bytes / bandwidth + latency. The bytes of an all-reduce in
a ring are 2 (n - 1) / n of the message; the message is the gradients, 59 numbers for each Gaussian of degree 3, and
3 more of the density control. The bandwidths are those that the links are sold with, halved.
"""

from __future__ import annotations

import heapq
import math
import random
import statistics
from typing import NamedTuple

from benchmarks.common import Row, Table, new_parser, publish
from utils.errors import run_script

NUMBERS = 59 + 3  # float32 for each Gaussian, in a step
# GB/s in one direction, and seconds for an exchange to begin; half of what is printed on the link.
LINKS = {"NVLink 4": (225.0, 20e-6), "PCIe 4 x16": (16.0, 30e-6), "10 GbE": (0.6, 100e-6)}


class Farm(NamedTuple):
    """All times in seconds."""

    subjects: int
    machines: int
    work: float  # of one subject, without checkpoints and failures
    mtbf: float  # of a machine that computes
    save: float  # a checkpoint
    restart: float  # from a failure until the work goes on


class Outcome(NamedTuple):
    makespan: float  # until the last subject is done
    busy: float  # of all machines together
    failures: int


def simulate(farm: Farm, interval: float, seed: int) -> Outcome:
    """Machines take subjects in order; a failure costs what was done since the last checkpoint, and a restart."""
    draw = random.Random(seed)
    free = [0.0] * farm.machines
    end, busy, failures = 0.0, 0.0, 0
    for _ in range(farm.subjects):
        now = begin = heapq.heappop(free)
        saved, fails = 0.0, now + draw.expovariate(1 / farm.mtbf)
        while saved < farm.work:
            piece = min(interval, farm.work - saved)
            done = now + piece + farm.save
            if done <= fails:
                now, saved = done, saved + piece
            else:
                failures += 1
                now = fails + farm.restart
                fails = now + draw.expovariate(1 / farm.mtbf)
        heapq.heappush(free, now)
        end, busy = max(end, now), busy + now - begin
    return Outcome(end, busy, failures)


def young(save: float, mtbf: float) -> float:
    """The best time between two checkpoints, to first order: Young 1974."""
    return math.sqrt(2 * save * mtbf)


def daly(save: float, mtbf: float) -> float:
    """The same to higher order: Daly 2006, equation 37."""
    x = save / (2 * mtbf)
    return young(save, mtbf) * (1 + math.sqrt(x) / 3 + x / 9) - save if save < 2 * mtbf else mtbf


def expected_overhead(farm: Farm, interval: float) -> float:
    """Of a long run, as a share of its work: exact for exponential failures (Daly 2006, equation 20)."""
    attempts = farm.mtbf * math.exp(farm.restart / farm.mtbf) * math.expm1((interval + farm.save) / farm.mtbf)
    return attempts / interval - 1


def checkpoint_rows(farm: Farm, seeds: int) -> list[Row]:
    best = daly(farm.save, farm.mtbf)
    rows = []
    for label, interval in [
        *((f"{minutes:g} min", 60.0 * minutes) for minutes in (0.25, 1, 5, 10, 30, 60)),
        (f"Young {young(farm.save, farm.mtbf) / 60:.1f} min", young(farm.save, farm.mtbf)),
        (f"Daly {best / 60:.1f} min", best),
        ("none", farm.work),
    ]:
        runs = [simulate(farm, interval, seed) for seed in range(seeds)]
        ideal = farm.subjects * farm.work
        rows.append(
            {
                "checkpoint every": label,
                "lost, simulated": f"{statistics.fmean(run.busy for run in runs) / ideal - 1:.2%}",
                "lost, formula": f"{expected_overhead(farm, min(interval, farm.work)):.2%}",
                "failures": round(statistics.fmean(run.failures for run in runs), 1),
                "all done after, hours": round(statistics.fmean(run.makespan for run in runs) / 3600, 2),
            }
        )
    return rows


def step_time(compute: float, processes: int, gaussians: int, bandwidth: float, latency: float) -> float:
    """Seconds of a step of as many views as one process has in `compute` seconds, on several of them."""
    if processes == 1:
        return compute
    message = 4 * NUMBERS * gaussians
    return compute / processes + 2 * (processes - 1) / processes * message / (bandwidth * 1e9) + 3 * latency


def link_rows(gaussians: int, compute: float) -> list[Row]:
    return [
        {
            "link": link,
            **{
                f"{count} processes": f"{compute / step_time(compute, count, gaussians, *LINKS[link]):.2f}"
                for count in (2, 4, 8)
            },
        }
        for link in LINKS
    ]


def main() -> None:
    parser = new_parser(__doc__, "seeds", "json")
    parser.add_argument("--subjects", type=int, default=400)
    parser.add_argument("--machines", type=int, default=20)
    parser.add_argument("--hours", type=float, default=2.0, help="that one subject takes")
    parser.add_argument("--mtbf", type=float, default=200.0, help="hours of work between two failures of a machine")
    parser.add_argument("--save", type=float, default=1.5, help="seconds that a checkpoint takes")
    parser.add_argument("--restart", type=float, default=60.0, help="seconds from a failure until the work goes on")
    parser.add_argument("--gaussians", type=int, default=100_000, help="of the second table")
    parser.add_argument("--views_ms", type=float, default=80.0, help="milliseconds that one GPU takes for 8 views")
    options = parser.parse_args()
    farm = Farm(
        options.subjects, options.machines, 3600 * options.hours, 3600 * options.mtbf, options.save, options.restart
    )
    publish(
        options,
        [
            Table(
                f"{farm.subjects} subjects of {options.hours:g} hours on {farm.machines} machines:",
                checkpoint_rows(farm, max(options.seeds, 1)),
            ),
            Table(
                f"Speed of n processes over that of one, {options.gaussians:,} Gaussians, {options.views_ms:g} ms for "
                "the 8 views of a step:",
                link_rows(options.gaussians, options.views_ms / 1000),
            ),
        ],
    )


if __name__ == "__main__":
    run_script(main)
