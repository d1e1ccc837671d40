"""The command line: option groups, parsing, the schedule, and the `cfg_args` file."""

from __future__ import annotations

from arguments.config_file import read_cfg_args, write_cfg_args
from arguments.options import (
    ModelOptions,
    OptimizationOptions,
    Options,
    PipelineOptions,
    RenderOptions,
    RunOptions,
)
from arguments.parser import parse_render, parse_train, viewer_note
from arguments.schedule import Milestones, milestones, scale_schedule

__all__ = [
    "Milestones", "ModelOptions", "OptimizationOptions", "Options", "PipelineOptions", "RenderOptions", "RunOptions",
    "milestones", "parse_render", "parse_train", "read_cfg_args", "scale_schedule", "viewer_note", "write_cfg_args",
]
