"""The command line: option groups, parsing, presets, the schedule, and the `cfg_args` file."""

from __future__ import annotations

from arguments.config_file import read_cfg_args, write_cfg_args
from arguments.export_options import ExportOptions
from arguments.options import (
    InnovationOptions,
    ModelOptions,
    OptimizationOptions,
    Options,
    PipelineOptions,
    RunOptions,
    flatten,
)
from arguments.parser import notes, parse_export, parse_render, parse_train
from arguments.presets import PRESETS
from arguments.render_options import RenderOptions
from arguments.schedule import milestones, scale_schedule

__all__ = [
    "ExportOptions",
    "InnovationOptions",
    "ModelOptions",
    "OptimizationOptions",
    "Options",
    "PRESETS",
    "PipelineOptions",
    "RenderOptions",
    "RunOptions",
    "flatten",
    "milestones",
    "notes",
    "parse_export",
    "parse_render",
    "parse_train",
    "read_cfg_args",
    "scale_schedule",
    "write_cfg_args",
]
