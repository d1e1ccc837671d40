"""The presets: names for sets of flags, used by `train.py --preset NAME` and by `train_efficient.sh`.

A preset is nothing but flags: writing them out gives the same run. Flags typed
beside it win, also those that switch a part of it off (`--no_amp`).
"""

from __future__ import annotations

from typing import Any

# What all of them but the baseline have.
_PARTS = {
    "use_region_adaptive_loss": True,
    "region_weight_eyes": 2.0,
    "region_weight_mouth": 2.0,
    "use_smart_densification": True,
    "use_amp": True,
    "use_warm_start": True,
    "lr_cooldown": 0.2,
    "lambda_alpha": 0.2,
    "fill_unseen": 0.05,
}

PRESETS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "ultra": _PARTS,
    "balanced": {
        **_PARTS,
        "region_weight_nose": 1.5,
        "densify_percentile_clone": 75.0,
        "densify_percentile_split": 90.0,
        "densify_floor": 0.56,
        "use_progressive_resolution": True,
        "use_color_calibration": True,
        "color_net_hidden_dim": 16,
    },
    "quality": {
        **_PARTS,
        "region_weight_eyes": 2.5,
        "region_weight_mouth": 2.5,
        "region_weight_nose": 1.8,
        "densify_percentile_clone": 70.0,
        "densify_percentile_split": 88.0,
        "densify_floor": 0.53,
        "use_color_calibration": True,
        "color_net_hidden_dim": 24,
    },
    # For runs of seconds to minutes.
    "fast": {**_PARTS, "warm_gaussians": 20_000, "use_short_run_rates": True},
    # What the efficient presets came to replace.
    "full": {
        "use_vgg_loss": True,
        "lambda_perceptual": 0.05,
        "use_adaptive_densification": True,
        "adaptive_densify_ratio": 1.5,
        "use_temporal_consistency": True,
        "lambda_temporal": 0.01,
    },
}
