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
from arguments.options import field_types, flatten, groups
from utils.errors import UserError

BASE = ["-s", "data", "-m", "out"]

# Section 5 of the format notes, typed again by hand.
DEFAULTS = dict(
    iterations=600_000, position_lr_init=0.005, position_lr_final=0.00005, position_lr_delay_mult=0.01,
    position_lr_max_steps=600_000, feature_lr=0.0025, opacity_lr=0.05, scaling_lr=0.017, rotation_lr=0.001,
    percent_dense=0.01, densification_interval=2000, opacity_reset_interval=60_000, densify_from_iter=10_000,
    densify_until_iter=600_000, densify_grad_threshold=2e-4, flame_expr_lr=1e-3, flame_trans_lr=1e-6,
    flame_pose_lr=1e-5, lambda_dssim=0.2, lambda_xyz=1e-2, threshold_xyz=1.0, metric_xyz=False, lambda_scale=1.0,
    threshold_scale=0.6, metric_scale=False, lambda_dynamic_offset=0.0, lambda_laplacian=0.0,
    lambda_dynamic_offset_std=0.0, dynamic_offset_lr=1e-5, sh_increase_interval=1000,
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
    line = (f"-s {tmp_path}/s -m {tmp_path}/m -t {tmp_path}/t -i pictures -r 4 -w --eval --bind_to_mesh --sh_degree 2 "
            "--data_device cpu --disable_flame_static_offset --not_finetune_flame_params --select_camera_id 8 "
            "--iterations 30_000 --convert_SHs_python --debug --ip 0.0.0.0 --port 60000 --debug_from 5 "
            "--detect_anomaly --interval 500 --test_iterations 7000 30000 --save_iterations 1 --checkpoint_iterations "
            "2 3 --start_checkpoint auto --quiet --metric_xyz --metric_scale "
            + " ".join(f"--{name} 0.25" for name, value in DEFAULTS.items() if type(value) is float))
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
    options = parse_train("--source_path a --model_path b --target_path c --images d --resolution 2 "
                          "--white_background --start_checkpoint e.pth --head_model f.pkl".split())
    assert options.model.source_path == str(Path.cwd() / "a")
    assert options.model.model_path == str(Path.cwd() / "b")
    assert options.model.target_path == str(Path.cwd() / "c")
    assert options.model.head_model == str(Path.cwd() / "f.pkl")
    assert options.run.start_checkpoint == str(Path.cwd() / "e.pth")
    assert (options.model.images, options.model.resolution, options.model.white_background) == ("d", 2, True)


@pytest.mark.parametrize("line, words", [
    ("--use_amp", ["--use_amp"]),                               # not built yet: must fail, not be ignored
    ("--white", ["--white"]),                                   # no abbreviations
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
])
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
    for parse, names in ((parse_train, flatten(Options())),
                         (parse_render, dataclasses.asdict(arguments.RenderOptions()))):
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
    full = parse_render("-m out --iteration 7 --skip_train --skip_val --skip_test --select_camera_id 3 -t tgt "
                        "--render_mesh --quiet --export_world 0 -s src --head_model h.pkl --device cpu".split())
    assert full.skip_train and full.skip_val and full.skip_test and full.render_mesh and full.quiet
    assert (full.iteration, full.select_camera_id, full.export_world) == (7, 3, 0)
    assert full.target_path == str(Path.cwd() / "tgt")
    for argv in ([], ["-m", "out", "--iterations", "5"], ["-m", "out", "--export_world", "-3"]):
        with pytest.raises(UserError):
            parse_render(argv)


# ------------------------------------------------------------------ schedule

def test_a_short_run_is_a_small_copy_of_the_long_one() -> None:
    options = train("--iterations 6000 --scale_schedule")
    scaled = dict(position_lr_max_steps=6000, sh_increase_interval=10, densify_from_iter=100, densify_until_iter=6000,
                  densification_interval=20, opacity_reset_interval=600)
    assert dataclasses.asdict(options.optimization) == {**DEFAULTS, "iterations": 6000, **scaled}
    assert options.run.interval == 600


def test_without_the_flag_nothing_scales() -> None:
    options = train("--iterations 6000")
    assert dataclasses.asdict(options.optimization) == {**DEFAULTS, "iterations": 6000}
    assert options.run.interval == 60_000


def test_full_length_is_unchanged_by_scaling() -> None:
    assert scale_schedule(train()) == train()


def test_typed_values_are_not_scaled() -> None:
    options = train("--iterations 6000 --scale_schedule --densify_from_iter 500 --interval 1000 --test_iterations 50 "
                    "--densification_interval 2000 --debug_from 4000")
    assert (options.optimization.densify_from_iter, options.optimization.densification_interval) == (500, 2000)
    assert (options.run.interval, options.run.test_iterations, options.run.debug_from) == (1000, (50,), 4000)
    assert options.optimization.densify_until_iter == 6000  # not typed


@pytest.mark.parametrize("iterations", [1, 7, 60, 600])
def test_tiny_runs_keep_usable_intervals(iterations: int) -> None:
    options = train(f"--iterations {iterations} --scale_schedule")
    assert options.optimization.densification_interval == 10
    assert options.optimization.opacity_reset_interval == 100
    assert options.optimization.sh_increase_interval == 1
    assert options.run.interval == 100


# ------------------------------------------------------------------ milestones (defect 1)

@pytest.mark.parametrize("iterations, interval", [(30_000, 60_000), (30_001, 1000), (600, 600), (1, 60_000)])
def test_multiples_up_to_the_actual_length_and_always_the_last(iterations: int, interval: int) -> None:
    due = milestones(train(f"--iterations {iterations} --interval {interval}"))
    expected = sorted({*range(interval, iterations + 1, interval), iterations})
    for moments in due:
        assert [step for step in range(1, iterations + 1) if moments(step)] == expected


def test_lists_replace_the_interval_for_their_kind_only() -> None:
    test, save, checkpoint = milestones(train(
        "--iterations 6000 --interval 2500 --test_iterations 7000 30000 100 --save_iterations 5"))
    assert [s for s in range(1, 6001) if test(s)] == [100, 6000]        # 7000 and 30000 never come
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
    text = st.text(st.characters(exclude_characters="\0"), max_size=12)
    for field in dataclasses.fields(group):
        kind, optional, many = field_types(group)[field.name]
        limits = field.metadata
        if kind is bool:
            strategy = st.booleans()
        elif kind is int:
            low = 1 if field.name == "resolution" else limits["at_least"]
            strategy = st.integers(low, limits["at_most"] or 2**40)
        elif kind is float:
            strategy = st.floats(limits["at_least"] or 0, limits["at_most"], exclude_min=limits["above"] is not None,
                                 allow_nan=False, allow_infinity=False)
        elif limits["choices"]:
            strategy = st.sampled_from(limits["choices"])
        else:
            strategy = text.filter(bool) if optional else text
        if many:
            strategy = st.lists(strategy, max_size=4).map(tuple)
        fields[field.name] = st.none() | strategy if optional else strategy
    return st.builds(group, **fields)


@settings(max_examples=60, deadline=None)
@given(st.builds(Options, model=_values(arguments.ModelOptions), optimization=_values(arguments.OptimizationOptions),
                 pipeline=_values(arguments.PipelineOptions), run=_values(arguments.RunOptions)))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, options: Options) -> None:
    folder = tmp_path_factory.mktemp("cfg")
    write_cfg_args(folder, options)
    assert read_cfg_args(folder) == options


def cfg(folder: Path, text: str | bytes) -> Path:
    file = folder / "cfg_args"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_file_of_another_trainer(tmp_path: Path) -> None:
    file = cfg(tmp_path, "Namespace(sh_degree=3, source_path='/data/UNION10', target_path='', model_path='/out/x', "
                         "images='images', resolution=-1, white_background=True, data_device='cuda', eval=True, "
                         "bind_to_mesh=True, disable_flame_static_offset=False, not_finetune_flame_params=False, "
                         "select_camera_id=-1, some_new_option={'a': [1, None]}, lambda_scale=1)\n")
    options = read_cfg_args(file)
    assert options.model == arguments.ModelOptions(
        source_path="/data/UNION10", model_path="/out/x", white_background=True, data_device="cuda", eval=True,
        bind_to_mesh=True)
    assert options.model.target_path is None
    assert type(options.optimization.lambda_scale) is float
    assert dataclasses.asdict(options.optimization) == DEFAULTS


@pytest.mark.parametrize("text", [
    "Namespace(a=__import__('os').system('touch PWNED'))",
    "Namespace(source_path=open('PWNED', 'w').name)",
    "__import__('os').system('touch PWNED') or Namespace()",
    "Namespace(**__import__('os').environ)",
    "Namespace(*[open('PWNED', 'w')])",
    "Namespace((lambda: open('PWNED', 'w'))())",
    "(lambda **k: open('PWNED', 'w'))(a=1)",
    "Namespace(a=f'{open(\"PWNED\", \"w\")}')",
    "Namespace(a=[open('PWNED', 'w') for _ in 'a'])",
    "Namespace(a=1); open('PWNED', 'w')",
    "Other(a=1)", "Namespace", "Namespace(", "", "\0", "[1]", "Namespace(a=1, a=2)", "Namespace(a=b)",
])
def test_only_literals_are_read(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cfg_args") as caught:
        read_cfg_args(cfg(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("text", [
    b"Namespace(source_path='\xff\xfe')",
    b"Namespace(a=" + b"[" * 200_000 + b"]" * 200_000 + b")",
    b"Namespace(a=" + b"-" * 200_000 + b"1)",
    b"Namespace(a=" + b"(" * 90 + b")" * 90 + b"x)",
    b"Namespace(a=" + b"1+" * 100_000 + b"1)",
    b"Namespace(sh_degree=" + b"9" * 10_000 + b")",
    b"Namespace(a=" + b" " * 2_000_000 + b"1)",
    b"Namespace(a={[]: 1})",
])
def test_text_made_to_hurt_the_parser(text: bytes, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cfg_args"):
        read_cfg_args(cfg(tmp_path, text))


@pytest.mark.parametrize("field, text", [
    ("sh_degree", "'3'"), ("sh_degree", "True"), ("sh_degree", "3.0"), ("sh_degree", "None"), ("sh_degree", "9"),
    ("sh_degree", "0x" + "f" * 20_000), ("lambda_dssim", "0x" + "f" * 20_000), ("lambda_dssim", "1e999"),
    ("source_path", "3"), ("source_path", "None"), ("source_path", "b'x'"), ("source_path", "'a\\0b'"),
    ("eval", "1"), ("feature_lr", "True"), ("feature_lr", "[0.1]"), ("target_path", "5"), ("resolution", "0"),
    ("test_iterations", "7"), ("test_iterations", "['7']"), ("test_iterations", "[[7]]"), ("rasterizer", "'x'"),
    ("data_device", "'tpu'"),
])
def test_wrong_values_name_file_and_field(field: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_cfg_args(cfg(tmp_path, f"Namespace({field}={text})"))
    assert "cfg_args" in str(caught.value) and field in str(caught.value) and len(str(caught.value)) < 300


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cfg_args"):
        read_cfg_args(tmp_path / "nowhere")
