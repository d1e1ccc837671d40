"""The command line, the schedule and `cfg_args`."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import arguments
from arguments import Options, milestones, parse_render, parse_train, read_cfg_args, scale_schedule, write_cfg_args
from arguments.fields import field_types
from arguments.options import flatten, groups
from utils.errors import UserError

BASE = ["-s", "data", "-m", "out"]

# Section 5 of the format notes, typed again by hand.
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


def train(line: str = "") -> Options:
    return parse_train(BASE + shlex.split(line))


# ------------------------------------------------------------------ parsing


def test_defaults() -> None:
    options = train()
    assert dataclasses.asdict(options.optimization) == DEFAULTS
    assert (options.model.sh_degree, options.model.resolution, options.model.images) == (3, -1, "images")
    assert options.run.interval == 60_000 and options.pipeline.rasterizer == "auto"


def test_every_upstream_flag_is_taken(tmp_path: Path) -> None:
    line = (
        f"-s {tmp_path}/s -m {tmp_path}/m -t {tmp_path}/t -i pictures -r 4 -w --eval --bind_to_mesh --sh_degree 2 "
        "--data_device cpu --disable_flame_static_offset --not_finetune_flame_params --select_camera_id 8 "
        "--iterations 30_000 --convert_SHs_python --debug --ip 0.0.0.0 --port 60000 --debug_from 5 "
        "--detect_anomaly --interval 500 --test_iterations 7000 30000 --save_iterations 1 --checkpoint_iterations "
        "2 3 --start_checkpoint auto --quiet --metric_xyz --metric_scale "
        + " ".join(f"--{name} 0.25" for name, value in DEFAULTS.items() if type(value) is float)
    )
    options = parse_train(line.split())
    model, run = options.model, options.run
    assert (model.source_path, model.model_path, model.target_path) == tuple(f"{tmp_path}/{x}" for x in "smt")
    assert (model.images, model.resolution, model.sh_degree, model.select_camera_id) == ("pictures", 4, 2, 8)
    assert model.white_background and model.eval and model.bind_to_mesh
    assert model.disable_flame_static_offset and model.not_finetune_flame_params
    assert options.optimization.iterations == 30_000
    assert options.optimization.metric_xyz and options.optimization.metric_scale
    assert all(getattr(options.optimization, name) == 0.25 for name, v in DEFAULTS.items() if type(v) is float)
    assert options.pipeline.convert_SHs_python and options.pipeline.debug
    assert (run.ip, run.port, run.debug_from, run.interval) == ("0.0.0.0", 60000, 5, 500)
    assert (run.test_iterations, run.save_iterations, run.checkpoint_iterations) == ((7000, 30000), (1,), (2, 3))
    assert run.start_checkpoint == "auto"


def test_long_forms_and_absolute_paths() -> None:
    options = parse_train(
        "--source_path a --model_path b --target_path c --images d --resolution 2 "
        "--white_background --start_checkpoint e.pth --head_model f.pkl".split()
    )
    assert options.model.source_path == str(Path.cwd() / "a")
    assert options.model.model_path == str(Path.cwd() / "b")
    assert options.model.target_path == str(Path.cwd() / "c")
    assert options.model.head_model == str(Path.cwd() / "f.pkl")
    assert options.run.start_checkpoint == str(Path.cwd() / "e.pth")
    assert (options.model.images, options.model.resolution, options.model.white_background) == ("d", 2, True)


@pytest.mark.parametrize(
    "line, words",
    [
        ("--use_warp_drive", ["--use_warp_drive"]),
        ("--white", ["--white"]),  # no abbreviations
        ("stray", ["stray"]),
        ("--iterations 0", ["--iterations", "0"]),
        ("--iterations -5", ["--iterations", "-5"]),
        ("--iterations 1e5", ["--iterations", "1e5"]),
        ("--iterations 99999999999999999999", ["--iterations"]),
        ("--densification_interval 0", ["--densification_interval"]),
        ("--opacity_reset_interval 0", ["--opacity_reset_interval"]),
        ("--sh_increase_interval 0", ["--sh_increase_interval"]),
        ("--interval 0", ["--interval"]),
        ("--test_iterations 5 0", ["--test_iterations", "0"]),
        ("--test_iterations", ["--test_iterations"]),
        ("--lambda_dssim 1.5", ["--lambda_dssim", "1.5"]),
        ("--feature_lr nan", ["--feature_lr", "nan"]),
        ("--feature_lr inf", ["--feature_lr", "inf"]),
        ("--opacity_lr -1", ["--opacity_lr", "-1"]),
        ("--position_lr_final 0", ["--position_lr_final"]),
        ("--densify_grad_threshold 0", ["--densify_grad_threshold"]),
        ("-r 0", ["--resolution", "0"]),
        ("-r -2", ["--resolution", "-2"]),
        ("--sh_degree 4", ["--sh_degree", "4"]),
        ("--sh_degree -1", ["--sh_degree", "-1"]),
        ("--rasterizer opengl", ["--rasterizer", "opengl", "native"]),
        ("--device tpu", ["--device", "tpu"]),
        ("--ram_share 0", ["--ram_share"]),
        ("--ram_share 1.5", ["--ram_share"]),
        ("--seed -1", ["--seed"]),
        ("--threads -1", ["--threads"]),
        ("--port 70000", ["--port"]),
        ("-t ''", ["--target_path"]),
        ("--eval=1", ["--eval"]),
        ("--preset fancy", ["--preset", "fancy", "baseline, ultra, balanced, quality"]),
        ("--use_amp=1", ["--use_amp"]),
        ("--densify_percentile_clone -1", ["--densify_percentile_clone", "at least 0"]),
        ("--densify_percentile_split 101", ["--densify_percentile_split", "at most 100"]),
        ("--densify_percentile_clone 95", ["--densify_percentile_clone 95", "--densify_percentile_split 90"]),
        ("--preset quality --densify_percentile_split 60", ["--densify_percentile_clone 70", "split 60"]),
        ("--max_gaussians -1", ["--max_gaussians"]),
        ("--resolution_schedule 0.5,1", ["--resolution_schedule 0.5,1", "1 --resolution_milestones", "100000,300000"]),
        ("--resolution_schedule 0.5,1 --resolution_milestones=", ["--resolution_milestones", "none"]),
        ("--resolution_schedule=", ["--resolution_schedule", "at least one"]),
        ("--resolution_schedule 0.5,half,1", ["--resolution_schedule", "0.5,half,1"]),
        ("--resolution_schedule 0,0.5,1", ["--resolution_schedule", "more than 0"]),
        ("--resolution_schedule 0.5,1,2", ["--resolution_schedule", "at most 1"]),
        ("--resolution_milestones 300000,100000", ["--resolution_milestones", "increase", "300000,100000"]),
        ("--resolution_milestones 5,5", ["--resolution_milestones", "increase"]),
        ("--resolution_milestones 0,5", ["--resolution_milestones", "at least 1"]),
        ("--resolution_milestones 1.5,5", ["--resolution_milestones", "whole numbers", "1.5,5"]),
        *(
            (f"--region_weight_{name} -0.1", [f"--region_weight_{name}", "at least 0"])
            for name in ("eyes", "mouth", "nose", "face")
        ),
        ("--color_net_hidden_dim 0", ["--color_net_hidden_dim", "at least 1"]),
        ("--color_net_layers 0", ["--color_net_layers", "at least 1"]),
        ("--lambda_color_reg -1", ["--lambda_color_reg"]),
        ("--color_lr nan", ["--color_lr"]),
        ("--warm_opacity 1", ["--warm_opacity"]),
        ("--warm_scale 0", ["--warm_scale"]),
        ("--batch_views 0", ["--batch_views"]),
        ("--refine_test_poses -1", ["--refine_test_poses"]),
        ("--refine_test_poses 50", ["--refine_test_poses", "--refine_cameras"]),
        ("--refine_cameras 6", ["--refine_test_poses", "--refine_cameras"]),
    ],
)
def test_mistakes_are_one_line_that_names_the_flag(line: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        train(line)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


@pytest.mark.parametrize("argv, flag", [(["-m", "out"], "--source_path"), (["-s", "data"], "--model_path")])
def test_missing_folder_flags(argv: list[str], flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        parse_train(argv)


def test_every_option_is_explained_on_the_help_page(capsys: pytest.CaptureFixture[str]) -> None:
    for parse, names in (
        (parse_train, flatten(Options())),
        (parse_render, dataclasses.asdict(arguments.RenderOptions())),
    ):
        with pytest.raises(SystemExit) as caught:
            parse(["--help"])
        assert caught.value.code == 0
        page = capsys.readouterr().out
        assert [name for name in names if f"--{name}" not in page] == []
    for group in [group for _, group in groups(Options())] + [arguments.RenderOptions()]:
        for field in dataclasses.fields(group):
            assert field.metadata["help"] and "\n" not in field.metadata["help"], field.name


def test_names_are_unique_over_the_groups() -> None:
    names = [field.name for _, group in groups(Options()) for field in dataclasses.fields(group)]
    assert len(names) == len(set(names))


def test_flags_without_effect_are_noted() -> None:
    assert arguments.notes(train()) == []
    for line in ("--port 6009", "--ip localhost"):
        (note,) = arguments.notes(train(line))
        assert "no live viewer" in note
    (note,) = arguments.notes(train("--compute_cov3D_python"))
    assert "no effect" in note


def test_render_options() -> None:
    plain = parse_render(["-m", "out"])
    assert (plain.iteration, plain.select_camera_id, plain.target_path, plain.source_path) == (-1, -1, None, None)
    assert plain.export_world is None and plain.model_path == str(Path.cwd() / "out")
    full = parse_render(
        "-m out --iteration 7 --skip_train --skip_val --skip_test --select_camera_id 3 -t tgt "
        "--render_mesh --quiet --export_world 0 -s src --head_model h.pkl --device cpu".split()
    )
    assert full.skip_train and full.skip_val and full.skip_test and full.render_mesh and full.quiet
    assert (full.iteration, full.select_camera_id, full.export_world) == (7, 3, 0)
    assert full.target_path == str(Path.cwd() / "tgt")
    assert (plain.no_color_calibration, plain.refine_flame, plain.refine_cameras) == (False, 0, ())
    refined = parse_render("-m out --no_color_calibration --refine_flame 40 --refine_cameras 6 9".split())
    assert (refined.no_color_calibration, refined.refine_flame, refined.refine_cameras) == (True, 40, (6, 9))
    for argv in (
        [],
        ["-m", "out", "--iterations", "5"],
        ["-m", "out", "--export_world", "-3"],
        ["-m", "out", "--refine_flame", "5"],
        ["-m", "out", "--refine_cameras", "6"],
    ):
        with pytest.raises(UserError):
            parse_render(argv)


# ------------------------------------------------------------------ innovations and presets

# Section 7 of the format notes, and what the project added, typed again by hand.
INNOVATIONS = dict(
    preset=None,
    use_region_adaptive_loss=False,
    region_weight_eyes=2.0,
    region_weight_mouth=2.0,
    region_weight_nose=1.5,
    region_weight_face=1.2,
    use_smart_densification=False,
    densify_percentile_clone=75.0,
    densify_percentile_split=90.0,
    densify_floor=1.0,
    densify_absolute=True,
    densify_split_radius=4.0,
    max_gaussians=150_000,
    use_progressive_resolution=False,
    resolution_schedule=(0.5, 0.75, 1.0),
    resolution_milestones=(100_000, 300_000),
    use_color_calibration=False,
    color_net_hidden_dim=16,
    color_net_layers=3,
    lambda_color_reg=0.0,
    color_per_camera=False,
    color_lr=1e-3,
    use_amp=False,
    use_warm_start=False,
    warm_colors=True,
    warm_opacity=0.5,
    warm_scale=0.5,
    warm_skip_resets=True,
    warm_prune_opacity=0.05,
    warm_feature_lr_factor=2.0,
    warm_expr_lr_factor=3.0,
    warm_trans_lr_factor=10.0,
    warm_pose_lr_factor=10.0,
    lr_cooldown=0.0,
    batch_views=1,
    refine_test_poses=0,
    refine_cameras=(),
)

# The table of presets, likewise, as command lines.
TABLE = {
    "baseline": "",
    "ultra": "--use_region_adaptive_loss --region_weight_eyes 2 --region_weight_mouth 2 --use_smart_densification "
    "--use_amp --use_warm_start --lr_cooldown 0.2",
    "balanced": "--use_region_adaptive_loss --region_weight_eyes 2 --region_weight_mouth 2 --region_weight_nose 1.5 "
    "--use_smart_densification --densify_percentile_clone 75 --densify_percentile_split 90 "
    "--densify_floor 0.56 --use_progressive_resolution --use_color_calibration --color_net_hidden_dim 16 "
    "--lambda_color_reg 0.0001 --use_amp --use_warm_start --lr_cooldown 0.2",
    "quality": "--use_region_adaptive_loss --region_weight_eyes 2.5 --region_weight_mouth 2.5 "
    "--region_weight_nose 1.8 --use_smart_densification --densify_percentile_clone 70 "
    "--densify_percentile_split 88 --densify_floor 0.53 --use_color_calibration "
    "--color_net_hidden_dim 24 --use_amp --use_warm_start --lr_cooldown 0.2",
}


def innovations(line: str) -> dict[str, object]:
    return dataclasses.asdict(train(line).innovations)


def test_innovations_are_off_by_default() -> None:
    assert innovations("") == INNOVATIONS


def test_every_efficient_flag_is_taken() -> None:
    line = (
        "--use_region_adaptive_loss --region_weight_eyes 3 --region_weight_mouth 4 --region_weight_nose 5 "
        "--region_weight_face 6 --use_smart_densification --densify_percentile_clone 50 "
        "--densify_percentile_split 60 --max_gaussians 0 --densify_floor 1 --no_densify_absolute "
        "--densify_split_radius 8 "
        "--use_progressive_resolution --resolution_schedule '0.25, 0.5,1' --resolution_milestones 10,20 "
        "--use_color_calibration --color_net_hidden_dim 8 --color_net_layers 2 --lambda_color_reg 0.5 "
        "--color_per_camera --color_lr 0.1 --use_amp --use_warm_start --no_warm_colors "
        "--warm_opacity 0.1 --warm_scale 1 --no_warm_skip_resets --warm_prune_opacity 0.02 "
        "--warm_feature_lr_factor 3 "
        "--warm_expr_lr_factor 1 --warm_trans_lr_factor 2 --warm_pose_lr_factor 0 "
        "--lr_cooldown 0.3 --batch_views 4 --refine_test_poses 50 --refine_cameras 6 9"
    )
    assert innovations(line) == dict(
        preset=None,
        use_region_adaptive_loss=True,
        region_weight_eyes=3.0,
        region_weight_mouth=4.0,
        region_weight_nose=5.0,
        region_weight_face=6.0,
        use_smart_densification=True,
        densify_percentile_clone=50.0,
        densify_percentile_split=60.0,
        max_gaussians=0,
        densify_floor=1.0,
        densify_absolute=False,
        densify_split_radius=8.0,
        warm_feature_lr_factor=3.0,
        lr_cooldown=0.3,
        use_progressive_resolution=True,
        resolution_schedule=(0.25, 0.5, 1.0),
        resolution_milestones=(10, 20),
        use_color_calibration=True,
        color_net_hidden_dim=8,
        color_net_layers=2,
        lambda_color_reg=0.5,
        color_per_camera=True,
        color_lr=0.1,
        use_amp=True,
        use_warm_start=True,
        warm_colors=False,
        warm_opacity=0.1,
        warm_scale=1.0,
        warm_skip_resets=False,
        warm_prune_opacity=0.02,
        warm_expr_lr_factor=1.0,
        warm_trans_lr_factor=2.0,
        warm_pose_lr_factor=0.0,
        batch_views=4,
        refine_test_poses=50,
        refine_cameras=(6, 9),
    )


def test_every_switch_has_a_flag_that_turns_it_off() -> None:
    switches = [name for name, value in INNOVATIONS.items() if isinstance(value, bool)]
    assert {"use_amp", "use_warm_start", "warm_colors", "color_per_camera"} < set(switches)
    for name in switches:
        off = f"--no_{name.removeprefix('use_')}"
        assert innovations(off)[name] is False
        assert innovations(f"--{name} {off}")[name] is False and innovations(f"{off} --{name}")[name] is True


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("more", ["", "--iterations 6000 --scale_schedule"])
def test_a_preset_is_exactly_its_flags(name: str, more: str, tmp_path: Path) -> None:
    assert arguments.PRESETS.keys() == TABLE.keys()
    chosen, written_out = train(f"--preset {name} {more}"), train(f"{TABLE[name]} {more}")
    named = dataclasses.replace(written_out.innovations, preset=name)
    assert chosen == dataclasses.replace(written_out, innovations=named)

    # It is told in a form that can be typed, and it is in the file.
    (line,) = arguments.notes(chosen)
    assert line.startswith(f"preset {name}: ")
    assert train(f"{line.partition(': ')[2].replace('no flags', '')} {more}") == written_out
    write_cfg_args(tmp_path, chosen)
    assert read_cfg_args(tmp_path) == chosen
    assert all(
        f"{flag}=True" in (tmp_path / "cfg_args").read_text()
        for flag in arguments.PRESETS[name]
        if flag.startswith("use_")
    )


def test_typed_flags_win_over_the_preset_on_both_sides_of_it() -> None:
    for line in (
        "--preset balanced --no_warm_start --region_weight_nose 3",
        "--no_warm_start --region_weight_nose 3 --preset balanced",
    ):
        changed = innovations(line)
        expected = {**innovations("--preset balanced"), "use_warm_start": False, "region_weight_nose": 3.0}
        assert changed == expected
    (note,) = arguments.notes(train("--preset balanced --no_color_calibration --region_weight_nose 3"))
    assert "--no_color_calibration" in note and "color_net" not in note and "--region_weight_nose 3.0" in note
    assert innovations("--preset baseline --use_amp") == {**INNOVATIONS, "preset": "baseline", "use_amp": True}


@pytest.mark.parametrize("more", ["", "--iterations 6000 --scale_schedule --preset ultra"])
def test_parts_of_what_is_off_are_noted(more: str) -> None:
    told = arguments.notes(train(f"{more} --resolution_schedule 0.5,1 --resolution_milestones 7 --color_per_camera"))
    assert [line for line in told if line.startswith("note")] == [
        "note: --resolution_schedule has no effect without --use_progressive_resolution",
        "note: --resolution_milestones has no effect without --use_progressive_resolution",
        "note: --color_per_camera has no effect without --use_color_calibration",
    ]


def test_a_run_too_short_for_its_full_resolution_is_noted() -> None:
    line = "--use_progressive_resolution --iterations"
    (note,) = arguments.notes(train(f"{line} 6000"))
    assert "--resolution_milestones 100000,300000" in note and "--scale_schedule" in note
    assert arguments.notes(train(f"{line} 300000")) == arguments.notes(train(f"{line} 6000 --scale_schedule")) == []


# ------------------------------------------------------------------ schedule


def test_a_short_run_is_a_small_copy_of_the_long_one() -> None:
    options = train("--iterations 6000 --scale_schedule")
    scaled = dict(
        position_lr_max_steps=6000,
        sh_increase_interval=10,
        densify_from_iter=100,
        densify_until_iter=6000,
        densification_interval=20,
        opacity_reset_interval=600,
    )
    assert dataclasses.asdict(options.optimization) == {**DEFAULTS, "iterations": 6000, **scaled}
    assert options.run.interval == 600
    assert options.innovations.resolution_milestones == (1000, 3000)


def test_without_the_flag_nothing_scales() -> None:
    options = train("--iterations 6000")
    assert dataclasses.asdict(options.optimization) == {**DEFAULTS, "iterations": 6000}
    assert options.run.interval == 60_000


def test_full_length_is_unchanged_by_scaling() -> None:
    assert scale_schedule(train()) == train()


def test_typed_values_are_not_scaled() -> None:
    options = train(
        "--iterations 6000 --scale_schedule --densify_from_iter 500 --interval 1000 --test_iterations 50 "
        "--densification_interval 2000 --debug_from 4000"
    )
    assert (options.optimization.densify_from_iter, options.optimization.densification_interval) == (500, 2000)
    assert (options.run.interval, options.run.test_iterations, options.run.debug_from) == (1000, (50,), 4000)
    assert options.optimization.densify_until_iter == 6000  # not typed
    options = train("--iterations 6000 --scale_schedule --preset balanced --resolution_milestones 100,5000")
    assert options.innovations.resolution_milestones == (100, 5000)
    assert options.optimization.densify_until_iter == 6000


@pytest.mark.parametrize("iterations", [1, 7, 60, 600])
def test_tiny_runs_keep_usable_intervals(iterations: int) -> None:
    options = train(f"--iterations {iterations} --scale_schedule")
    assert options.optimization.densification_interval == 10
    assert options.optimization.opacity_reset_interval == 100
    assert options.optimization.sh_increase_interval == 1
    assert options.run.interval == 100
    first, second = options.innovations.resolution_milestones
    assert 1 <= first < second <= max(2, (iterations + 1) // 2)


# ------------------------------------------------------------------ milestones (defect 1)


@pytest.mark.parametrize("iterations, interval", [(30_000, 60_000), (30_001, 1000), (600, 600), (1, 60_000)])
def test_multiples_up_to_the_actual_length_and_always_the_last(iterations: int, interval: int) -> None:
    due = milestones(train(f"--iterations {iterations} --interval {interval}"))
    expected = sorted({*range(interval, iterations + 1, interval), iterations})
    for moments in due:
        assert [step for step in range(1, iterations + 1) if moments(step)] == expected


def test_lists_replace_the_interval_for_their_kind_only() -> None:
    test, save, checkpoint = milestones(
        train("--iterations 6000 --interval 2500 --test_iterations 7000 30000 100 --save_iterations 5")
    )
    assert [s for s in range(1, 6001) if test(s)] == [100, 6000]  # 7000 and 30000 never come
    assert [s for s in range(1, 6001) if save(s)] == [5, 6000]
    assert [s for s in range(1, 6001) if checkpoint(s)] == [2500, 5000, 6000]


# ------------------------------------------------------------------ cfg_args


def test_file_is_a_namespace_that_python_itself_reads(tmp_path: Path) -> None:
    options = train("--eval --test_iterations 7 8 --feature_lr 0.1")
    write_cfg_args(tmp_path, options)
    text = (tmp_path / "cfg_args").read_text()
    # What other programs of the ecosystem do with the file.
    namespace = eval(text, {"__builtins__": {}}, {"Namespace": argparse.Namespace})
    assert namespace.source_path == str(Path.cwd() / "data")
    assert namespace.eval is True and namespace.feature_lr == 0.1 and namespace.test_iterations == [7, 8]
    assert vars(namespace).keys() == flatten(options).keys()
    assert [path.name for path in tmp_path.iterdir()] == ["cfg_args"]


def test_folder_and_file_name_the_same(tmp_path: Path) -> None:
    write_cfg_args(tmp_path / "cfg_args", train("--sh_degree 1"))
    assert read_cfg_args(tmp_path) == read_cfg_args(tmp_path / "cfg_args") == train("--sh_degree 1")


def _values(group: type) -> st.SearchStrategy:
    fields = {}
    text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)  # others name no file
    for field in dataclasses.fields(group):
        kind, optional, many = field_types(group)[field.name]
        limits = field.metadata
        if kind is bool:
            strategy = st.booleans()
        elif kind is int:
            low = 1 if field.name == "resolution" else limits["at_least"]
            strategy = st.integers(low, limits["at_most"] or 2**40)
        elif kind is float:
            # "Above 0" as a normal number: utils/threads.py flushes the others to 0.
            low = (limits["at_least"] or 0.0) if limits["above"] is None else limits["above"] + 1e-300
            strategy = st.floats(low, limits["at_most"], allow_subnormal=False, allow_nan=False, allow_infinity=False)
        elif limits["choices"]:
            strategy = st.sampled_from(limits["choices"])
        else:
            strategy = text.filter(bool) if optional else text
        if many:
            strategy = st.lists(strategy, max_size=4).map(tuple)
        fields[field.name] = st.none() | strategy if optional else strategy
    return st.builds(group, **fields)


def _fitting(values: arguments.InnovationOptions) -> arguments.InnovationOptions:
    """The nearest values that do not contradict each other."""
    low, high = sorted((values.densify_percentile_clone, values.densify_percentile_split))
    milestones = tuple(sorted(set(values.resolution_milestones)))
    scales = (values.resolution_schedule + (1.0,) * 5)[: len(milestones) + 1]
    cameras = values.refine_cameras or (7,)
    return dataclasses.replace(
        values,
        densify_percentile_clone=low,
        densify_percentile_split=high,
        resolution_milestones=milestones,
        resolution_schedule=scales,
        refine_cameras=cameras if values.refine_test_poses else (),
    )


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        Options,
        model=_values(arguments.ModelOptions),
        optimization=_values(arguments.OptimizationOptions),
        pipeline=_values(arguments.PipelineOptions),
        run=_values(arguments.RunOptions),
        innovations=_values(arguments.InnovationOptions).map(_fitting),
    )
)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, options: Options) -> None:
    folder = tmp_path_factory.mktemp("cfg")
    write_cfg_args(folder, options)
    assert read_cfg_args(folder) == options


def cfg(folder: Path, text: str | bytes) -> Path:
    file = folder / "cfg_args"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_file_of_another_trainer(tmp_path: Path) -> None:
    file = cfg(
        tmp_path,
        "Namespace(sh_degree=3, source_path='/data/UNION10', target_path='', model_path='/out/x', "
        "images='images', resolution=-1, white_background=True, data_device='cuda', eval=True, "
        "bind_to_mesh=True, disable_flame_static_offset=False, not_finetune_flame_params=False, "
        "select_camera_id=-1, some_new_option={'a': [1, None]}, lambda_scale=1)\n",
    )
    options = read_cfg_args(file)
    assert options.model == arguments.ModelOptions(
        source_path="/data/UNION10",
        model_path="/out/x",
        white_background=True,
        data_device="cuda",
        eval=True,
        bind_to_mesh=True,
    )
    assert options.model.target_path is None
    assert type(options.optimization.lambda_scale) is float
    assert dataclasses.asdict(options.optimization) == DEFAULTS
    assert options.innovations == arguments.InnovationOptions()  # older than they are


def test_efficient_flags_in_the_file_of_another_trainer(tmp_path: Path) -> None:
    options = read_cfg_args(
        cfg(
            tmp_path,
            "Namespace(use_amp=True, densify_percentile_clone=70, "
            "resolution_schedule='0.5,1.0', resolution_milestones='5000')",
        )
    )
    assert options.innovations == arguments.InnovationOptions(
        use_amp=True, densify_percentile_clone=70.0, resolution_schedule=(0.5, 1.0), resolution_milestones=(5000,)
    )


@pytest.mark.parametrize(
    "text",
    [
        "Namespace(a=__import__('os').system('touch PWNED'))",
        "Namespace(source_path=open('PWNED', 'w').name)",
        "__import__('os').system('touch PWNED') or Namespace()",
        "Namespace(**__import__('os').environ)",
        "Namespace(*[open('PWNED', 'w')])",
        "Namespace((lambda: open('PWNED', 'w'))())",
        "(lambda **k: open('PWNED', 'w'))(a=1)",
        'Namespace(a=f\'{open("PWNED", "w")}\')',
        "Namespace(a=[open('PWNED', 'w') for _ in 'a'])",
        "Namespace(a=1); open('PWNED', 'w')",
        "Other(a=1)",
        "Namespace",
        "Namespace(",
        "",
        "\0",
        "[1]",
        "Namespace(a=1, a=2)",
        "Namespace(a=b)",
    ],
)
def test_only_literals_are_read(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cfg_args") as caught:
        read_cfg_args(cfg(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    "text",
    [
        b"Namespace(source_path='\xff\xfe')",
        b"Namespace(a=" + b"[" * 200_000 + b"]" * 200_000 + b")",
        b"Namespace(a=" + b"-" * 200_000 + b"1)",
        b"Namespace(a=" + b"(" * 90 + b")" * 90 + b"x)",
        b"Namespace(a=" + b"1+" * 100_000 + b"1)",
        b"Namespace(sh_degree=" + b"9" * 10_000 + b")",
        b"Namespace(a=" + b" " * 2_000_000 + b"1)",
        b"Namespace(a={[]: 1})",
    ],
)
def test_text_made_to_hurt_the_parser(text: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cfg_args"):
        read_cfg_args(cfg(tmp_path, text))


@pytest.mark.parametrize(
    "field, text",
    [
        ("sh_degree", "'3'"),
        ("sh_degree", "True"),
        ("sh_degree", "3.0"),
        ("sh_degree", "None"),
        ("sh_degree", "9"),
        ("sh_degree", "0x" + "f" * 20_000),
        ("lambda_dssim", "0x" + "f" * 20_000),
        ("lambda_dssim", "1e999"),
        ("source_path", "3"),
        ("source_path", "None"),
        ("source_path", "b'x'"),
        ("source_path", "'a\\0b'"),
        ("eval", "1"),
        ("feature_lr", "True"),
        ("feature_lr", "[0.1]"),
        ("target_path", "5"),
        ("resolution", "0"),
        ("test_iterations", "7"),
        ("test_iterations", "['7']"),
        ("test_iterations", "[[7]]"),
        ("rasterizer", "'x'"),
        ("data_device", "'tpu'"),
        ("preset", "'fancy'"),
        ("resolution_schedule", "'a,b'"),
        ("resolution_schedule", "0.5"),
        ("resolution_milestones", "['5']"),
        ("resolution_milestones", "[7, 5]"),
        ("densify_percentile_clone", "99"),
    ],
)
def test_wrong_values_name_file_and_field(field: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_cfg_args(cfg(tmp_path, f"Namespace({field}={text})"))
    assert "cfg_args" in str(caught.value) and field in str(caught.value) and len(str(caught.value)) < 300


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cfg_args"):
        read_cfg_args(tmp_path / "nowhere")
