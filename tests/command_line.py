"""Command lines of `train.py`, and what they begin with, for the tests of the options."""

from __future__ import annotations

import shlex

from arguments import Options, parse_train

# As the trainers before this one have them, typed again by hand.
DEFAULTS = dict(
    iterations=600_000,
    position_lr_init=0.005,
    position_lr_final=0.00005,
    position_lr_delay_mult=0.01,
    position_lr_max_steps=600_000,
    feature_lr=0.0025,
    opacity_lr=0.05,
    scaling_lr=0.017,
    rotation_lr=0.001,
    percent_dense=0.01,
    densification_interval=2000,
    opacity_reset_interval=60_000,
    densify_from_iter=10_000,
    densify_until_iter=600_000,
    densify_grad_threshold=2e-4,
    flame_expr_lr=1e-3,
    flame_trans_lr=1e-6,
    flame_pose_lr=1e-5,
    lambda_dssim=0.2,
    lambda_xyz=1e-2,
    threshold_xyz=1.0,
    metric_xyz=False,
    lambda_scale=1.0,
    threshold_scale=0.6,
    metric_scale=False,
    lambda_dynamic_offset=0.0,
    lambda_laplacian=0.0,
    lambda_dynamic_offset_std=0.0,
    dynamic_offset_lr=1e-5,
    sh_increase_interval=1000,
)
OPTIMIZED = "position_lr_init position_lr_final feature_lr opacity_lr scaling_lr rotation_lr"
RATES = {name: DEFAULTS[name] for name in OPTIMIZED.split()} | {"position_lr_max_steps": 100}  # of `GaussianOptimizer`


def train(line: str = "") -> Options:
    return parse_train(["-s", "data", "-m", "out", *shlex.split(line)])
