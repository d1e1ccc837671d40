"""The picture of expressions: which view it chooses, and what stands beside its photograph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import train_on

from benchmarks import expressions
from utils.errors import UserError


def test_the_photograph_with_most_of_it_and_the_avatars(capture: Path, tmp_path: Path) -> None:
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
