"""What two mended defects of earlier trainers do to the point count and the quality.

    python benchmarks/defects.py -s DATA [any train.py flag]

Trains the same avatar three times: as it is, with split children jittered in
metres instead of triangle units, and with screen sizes zeroed before pruning
reads them (both described in `training/density_control.py`). Prints one line each.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

import utils.threads  # noqa: F401  (before PyTorch: sets how its threads wait)
from arguments import parse_train
from ops.rotations import rotate
from train import train
from training.density_control import DensityControl, DensityReport
from utils.errors import run_script

VARIANTS = ("mended", "jitter in metres", "screen sizes zeroed")


@contextlib.contextmanager
def variant(name: str, counts: Counter[str]) -> Iterator[None]:
    """The density control with one of the defects, counting what it does."""
    densify = DensityControl._densify
    scales: list[Tensor] = []

    def counted(self: DensityControl, step: int, world_scales: Tensor) -> DensityReport:
        scales[:] = [world_scales]
        if name == "screen sizes zeroed":
            self.max_radii.zero_()
        report = densify(self, step, world_scales)
        counts.update(cloned=report.cloned, split=report.split, pruned=report.pruned)
        return report

    def in_meters(self: DensityControl, parents: Tensor) -> Tensor:
        noise = torch.randn(len(parents), 3, generator=self.generator).to(parents.device)
        quats = torch.nn.functional.normalize(self.model.rotation[parents], dim=1)
        return rotate(quats, noise * scales[0][parents])

    with mock.patch.object(DensityControl, "_densify", counted):
        if name == "jitter in metres":
            with mock.patch.object(DensityControl, "_jitter", in_meters):
                yield
        else:
            yield


def main() -> None:
    for name in VARIANTS:
        counts: Counter[str] = Counter()
        with tempfile.TemporaryDirectory(prefix="defects-") as folder, variant(name, counts):
            results = train(
                parse_train(
                    [
                        *sys.argv[1:],
                        "-m",
                        f"{folder}/model",
                        "--eval",
                        "--bind_to_mesh",
                        "--white_background",
                        "--quiet",
                    ]
                )
            )
        quality = ", ".join(f"{split} {means['psnr']:.2f} dB" for split, means in results["metrics"].items())
        print(
            f"{name:<20} cloned {counts['cloned']:,}, split {counts['split']:,}, pruned {counts['pruned']:,}, "
            f"{results['points']:,} Gaussians at the end; {quality}",
            flush=True,
        )


if __name__ == "__main__":
    run_script(main)
