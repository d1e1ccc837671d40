"""`cfg_args`: written, read back, of other trainers, and hostile."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest
from command_line import train
from hypothesis import given, settings
from hypothesis import strategies as st

import arguments
from arguments import Options, public, read_cfg_args, write_cfg_args
from arguments.fields import field_types
from arguments.options import flatten
from utils.errors import UserError


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
            strategy = st.sampled_from([choice.replace(":N", ":3") for choice in limits["choices"]])
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
    assert options.optimization == arguments.OptimizationOptions()
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


def test_a_secret_is_not_written(tmp_path: Path) -> None:
    options = train("--port 6009 --viewer_token Sesame")
    assert options.run.viewer_token == "Sesame"
    assert public(options).run == dataclasses.replace(options.run, viewer_token=None)
    write_cfg_args(tmp_path, public(options))
    assert "Sesame" not in (tmp_path / "cfg_args").read_text() and read_cfg_args(tmp_path) == public(options)
