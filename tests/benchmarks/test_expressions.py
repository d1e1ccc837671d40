"""The benchmark of faces: its PSNR of the face against all of its pixels, and its picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import train_on

from benchmarks import expressions
from benchmarks.ablation.measure import REGIONS, RegionError
from utils.errors import UserError


def test_the_face_is_all_of_its_pixels() -> None:
    rng = np.random.default_rng(0)
    errors, pixels = RegionError(), []
    for _ in range(2):
        image, truth = rng.random((2, 3, 9, 11))
        labels = rng.integers(len(REGIONS), size=(9, 11))
        labels[:, 0] = REGIONS.index("rest")
        errors.add(image, truth, labels)
        pixels.append(((image - truth) ** 2).mean(0)[np.isin(labels, [REGIONS.index(n) for n in expressions.FACE])])
    wanted = -10 * np.log10(np.concatenate(pixels).mean())
    assert expressions.face_psnr(errors.summary()) == pytest.approx(wanted)


def test_figures_and_picture_of_a_run(capture: Path, tmp_path: Path) -> None:
    names = capture / "expr_names.json"
    names.write_text(json.dumps({"expression": ["taller"]}))
    try:
        train_on(capture, tmp_path / "model", "--iterations 3")
        outputs = [tmp_path / "model"]
        with pytest.raises(UserError, match="--expressions smile: the head model has taller"):
            expressions.picture(outputs, ["smile"])
        shown = expressions.picture(outputs * 2, ["taller"])
    finally:
        names.unlink()
    # The view of camera 1 in which the ball is tallest, of those that were not trained on; and twice what was drawn.
    photograph = np.asarray(Image.open(capture / "images" / "00007_01.png").convert("RGB")) / 255
    height, width, _ = photograph.shape
    assert shown.shape == (3, height, 3 * width)
    np.testing.assert_allclose(shown[:, :, :width].permute(1, 2, 0), photograph, atol=1e-6)
    assert (shown[:, :, width : 2 * width] == shown[:, :, 2 * width :]).all() and shown[:, :, width:].std() > 0
    with pytest.raises(UserError, match="no finished training"):
        list(expressions.figures([tmp_path]))
