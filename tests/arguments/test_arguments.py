"""The command line, its defaults and presets."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from command_line import DEFAULTS, train

import arguments
from arguments import Options, parse_render, parse_train, parse_view, read_cfg_args, write_cfg_args
from arguments.options import flatten, groups
from utils.errors import UserError

# ------------------------------------------------------------------ parsing


def test_defaults() -> None:
    options = train()
    assert dataclasses.asdict(options.optimization) == DEFAULTS
    assert (options.model.sh_degree, options.model.resolution, options.model.images) == (3, -1, "images")
    assert options.run.interval == 60_000 and options.pipeline.rasterizer == "auto"


def test_a_gpu_by_its_number() -> None:
    options = train("--device cuda:1 --data_device cuda:12")
    assert (options.run.device, options.model.data_device) == ("cuda:1", "cuda:12")


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
        ("--device mps", ["--device", "one of auto, cpu, cuda, cuda:N", "mps"]),
        ("--device cuda:N", ["--device", "cuda:N"]),
        ("--device cuda:-1", ["--device", "cuda:-1"]),
        ("--device cpu:0", ["--device", "cpu:0"]),
        ("--ram_share 0", ["--ram_share"]),
        ("--ram_share 1.5", ["--ram_share"]),
        ("--seed -1", ["--seed"]),
        ("--threads -1", ["--threads"]),
        ("--port 70000", ["--port"]),
        ("-t ''", ["--target_path"]),
        ("--eval=1", ["--eval"]),
        ("--preset fancy", ["--preset", "fancy", "baseline, ultra, balanced, quality, fast"]),
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
        ("--lambda_color_drift -1", ["--lambda_color_drift"]),
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
        (parse_view, dataclasses.asdict(arguments.ViewOptions())),
        (arguments.parse_export, dataclasses.asdict(arguments.ExportOptions())),
    ):
        with pytest.raises(SystemExit) as caught:
            parse(["--help"])
        assert caught.value.code == 0
        page = capsys.readouterr().out
        assert [name for name in names if f"--{name}" not in page] == []
    others = [arguments.RenderOptions(), arguments.ViewOptions(), arguments.ExportOptions()]
    for group in [group for _, group in groups(Options())] + others:
        for field in dataclasses.fields(group):
            assert field.metadata["help"] and "\n" not in field.metadata["help"], field.name


def test_names_are_unique_over_the_groups() -> None:
    names = [field.name for _, group in groups(Options()) for field in dataclasses.fields(group)]
    assert len(names) == len(set(names))


def test_flags_without_effect_are_noted() -> None:
    assert arguments.notes(train()) == []
    for line in ("--ip localhost", "--viewer_token Sesame", "--viewer_share 0.5"):
        (note,) = arguments.notes(train(line))
        assert note == f"note: {line.split()[0]} has no effect without --port"
        assert arguments.notes(train(f"{line} --port 6009")) == []
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

# What the project added, typed again by hand.
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
    lambda_color_drift=10.0,
    lambda_color_reg=0.0,
    color_per_camera=False,
    color_lr=1e-3,
    use_expression_appearance=False,
    expression_appearance_modes=10,
    expression_appearance_lr=1e-3,
    expression_appearance_from=0.08,
    use_amp=False,
    use_warm_start=False,
    warm_colors=True,
    warm_opacity=0.5,
    warm_scale=0.5,
    warm_gaussians=0,
    warm_skip_resets=True,
    warm_prune_opacity=0.05,
    warm_feature_lr_factor=2.0,
    warm_expr_lr_factor=3.0,
    warm_trans_lr_factor=10.0,
    warm_pose_lr_factor=10.0,
    use_short_run_rates=False,
    lambda_alpha=0.0,
    fill_unseen=0.0,
    lr_cooldown=0.0,
    use_vgg_loss=False,
    lambda_perceptual=0.05,
    use_adaptive_densification=False,
    adaptive_densify_ratio=1.5,
    use_temporal_consistency=False,
    lambda_temporal=0.01,
    batch_views=1,
    lr_views_rule="sqrt",
    refine_test_poses=0,
    refine_cameras=(),
)

# The table of presets, likewise, as command lines.
TABLE = {
    "baseline": "",
    "ultra": "--use_region_adaptive_loss --region_weight_eyes 2 --region_weight_mouth 2 --use_smart_densification "
    "--use_amp --use_warm_start --lr_cooldown 0.2 --lambda_alpha 0.2 --fill_unseen 0.05",
    "balanced": "--use_region_adaptive_loss --region_weight_eyes 2 --region_weight_mouth 2 --region_weight_nose 1.5 "
    "--use_smart_densification --densify_percentile_clone 75 --densify_percentile_split 90 "
    "--densify_floor 0.56 --use_progressive_resolution --use_color_calibration --color_net_hidden_dim 16 "
    "--use_amp --use_warm_start --lr_cooldown 0.2 --lambda_alpha 0.2 --fill_unseen 0.05",
    "quality": "--use_region_adaptive_loss --region_weight_eyes 2.5 --region_weight_mouth 2.5 "
    "--region_weight_nose 1.8 --use_smart_densification --densify_percentile_clone 70 "
    "--densify_percentile_split 88 --densify_floor 0.53 --use_color_calibration "
    "--color_net_hidden_dim 24 --use_amp --use_warm_start --lr_cooldown 0.2 --lambda_alpha 0.2 --fill_unseen 0.05",
    "fast": "--use_region_adaptive_loss --region_weight_eyes 2 --region_weight_mouth 2 --use_smart_densification "
    "--use_amp --use_warm_start --warm_gaussians 20000 --use_short_run_rates --lr_cooldown 0.2 --lambda_alpha 0.2 "
    "--fill_unseen 0.05",
    "full": "--use_vgg_loss --lambda_perceptual 0.05 --use_adaptive_densification --adaptive_densify_ratio 1.5 "
    "--use_temporal_consistency --lambda_temporal 0.01",
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
        "--lambda_color_drift 2 --color_per_camera --color_lr 0.1 --use_amp --use_warm_start --no_warm_colors "
        "--use_expression_appearance --expression_appearance_modes 5 --expression_appearance_lr 0.01 "
        "--expression_appearance_from 0.2 "
        "--warm_opacity 0.1 --warm_scale 1 --warm_gaussians 30000 --use_short_run_rates "
        "--no_warm_skip_resets --warm_prune_opacity 0.02 "
        "--warm_feature_lr_factor 3 "
        "--warm_expr_lr_factor 1 --warm_trans_lr_factor 2 --warm_pose_lr_factor 0 "
        "--use_vgg_loss --lambda_perceptual 0.2 --use_adaptive_densification --adaptive_densify_ratio 3 "
        "--use_temporal_consistency --lambda_temporal 0.3 "
        "--lambda_alpha 0.7 --fill_unseen 0.1 --lr_cooldown 0.3 --batch_views 4 --lr_views_rule linear "
        "--refine_test_poses 50 --refine_cameras 6 9"
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
        lambda_alpha=0.7,
        fill_unseen=0.1,
        lr_cooldown=0.3,
        use_progressive_resolution=True,
        resolution_schedule=(0.25, 0.5, 1.0),
        resolution_milestones=(10, 20),
        use_color_calibration=True,
        color_net_hidden_dim=8,
        color_net_layers=2,
        lambda_color_drift=2.0,
        lambda_color_reg=0.5,
        color_per_camera=True,
        color_lr=0.1,
        use_expression_appearance=True,
        expression_appearance_modes=5,
        expression_appearance_lr=0.01,
        expression_appearance_from=0.2,
        use_amp=True,
        use_warm_start=True,
        warm_colors=False,
        warm_opacity=0.1,
        warm_scale=1.0,
        warm_gaussians=30_000,
        use_short_run_rates=True,
        warm_skip_resets=False,
        warm_prune_opacity=0.02,
        warm_expr_lr_factor=1.0,
        warm_trans_lr_factor=2.0,
        warm_pose_lr_factor=0.0,
        use_vgg_loss=True,
        lambda_perceptual=0.2,
        use_adaptive_densification=True,
        adaptive_densify_ratio=3.0,
        use_temporal_consistency=True,
        lambda_temporal=0.3,
        batch_views=4,
        lr_views_rule="linear",
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

    # It is printed in a form that can be typed, and it is in the file.
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
    notes = arguments.notes(train(f"{more} --resolution_schedule 0.5,1 --resolution_milestones 7 --color_per_camera"))
    assert [line for line in notes if line.startswith("note")] == [
        "note: --resolution_schedule has no effect without --use_progressive_resolution",
        "note: --resolution_milestones has no effect without --use_progressive_resolution",
        "note: --color_per_camera has no effect without --use_color_calibration",
    ]


def test_rates_for_a_short_run_are_noted_where_the_run_is_long() -> None:
    (note,) = arguments.notes(train("--use_short_run_rates --iterations 20000"))
    assert note == "note: --use_short_run_rates has no effect on a run of 20,000 iterations or more"
    assert not arguments.notes(train("--use_short_run_rates --iterations 19999"))
    assert len(arguments.notes(train("--preset fast"))) == 1  # nobody typed it


def test_a_run_too_short_for_its_full_resolution_is_noted() -> None:
    line = "--use_progressive_resolution --iterations"
    (note,) = arguments.notes(train(f"{line} 6000"))
    assert "--resolution_milestones 100000,300000" in note and "--scale_schedule" in note
    assert arguments.notes(train(f"{line} 300000")) == arguments.notes(train(f"{line} 6000 --scale_schedule")) == []
