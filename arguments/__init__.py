"""The command line: option groups, parsing, presets, the schedule, and the `cfg_args` file."""

from __future__ import annotations

from arguments.config_file import read_cfg_args, write_cfg_args
from arguments.export_options import ExportOptions
from arguments.innovation_options import SHORT_RUN, InnovationOptions
from arguments.many_options import ManyOptions
from arguments.options import (
    METRICS,
    ModelOptions,
    OptimizationOptions,
    Options,
    PipelineOptions,
    RunOptions,
    flatten,
    public,
)
from arguments.parser import notes, parse_export, parse_many, parse_render, parse_train, parse_view
from arguments.presets import PRESETS
from arguments.render_options import RenderOptions
from arguments.schedule import milestones, scale_schedule
from arguments.view_options import ViewOptions

__all__ = [
    "ExportOptions",
    "InnovationOptions",
    "METRICS",
    "ManyOptions",
    "ModelOptions",
    "OptimizationOptions",
    "Options",
    "PRESETS",
    "PipelineOptions",
    "RenderOptions",
    "RunOptions",
    "SHORT_RUN",
    "ViewOptions",
    "flatten",
    "milestones",
    "notes",
    "parse_export",
    "parse_many",
    "parse_render",
    "parse_train",
    "parse_view",
    "public",
    "read_cfg_args",
    "scale_schedule",
    "write_cfg_args",
]
