"""`rmd plan`: the table, the JSON, the overrides and the figure."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from rmd.cli.app import app, main
from rmd.cli.plan import cost_line, plan_values
from rmd.common.errors import RMDError
from rmd.core.fit import crossing_bits, natural_spectrum
from rmd.core.times import flow_sigma
from rmd.recipes.schema import load_recipe


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "100"})


def values(*arguments: str) -> dict[str, list[dict[str, float | None]]]:
    """Return what --json prints, parsed by the rules of strict JSON."""

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    read: dict[str, list[dict[str, float | None]]] = json.loads(result.stdout, parse_constant=refuse)
    return read


def column(read: dict[str, list[dict[str, float | None]]], key: str) -> list[float | None]:
    return [step[key] for step in read["steps"]]


def test_the_table_and_the_cost() -> None:
    result = run("pixart-paper")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["step", "stage", "side", "teacher", "time", "model", "time", "logSNR", "sigma", "cost"] in rows
    assert ["2", "1", "512x512", "750.0", "857.1", "-5.70", "0.95", "0.25"] in rows
    assert ["3", "->", "2", "1024x1024", "500.0", "500.0", "-2.46", "0.77", "1"] in rows
    assert ["4", "2", "1024x1024", "250.0", "250.0", "0.10", "0.49", "1"] in rows
    assert result.stdout.splitlines()[-1] == "2+2 steps at the cost of 2.5 full-resolution steps by area (1.60x less)"


def test_a_line_for_every_crossing_says_how_much_detail_it_leaves_bare() -> None:
    lines = [line.strip() for line in run("sdxl-1+1+2").stdout.splitlines()]
    plan = load_recipe("sdxl-1+1+2").build_plan()
    bits = crossing_bits(plan, load_recipe("sdxl").schedule(), natural_spectrum((128, 128)))
    assert lines[-5:-1] == [
        f"crossing to 512x512 at sigma 0.80 leaves {bits[0]:.4f} bits of detail bare *",
        f"crossing to 1024x1024 at sigma 0.62 leaves {bits[1]:.4f} bits of detail bare *",
        "* detail that the low resolution lacks, for each latent value; by a 1/f^2",
        "spectrum: `rmd plan --fit` measures the teacher's own",
    ]
    assert 0 < bits[0] < bits[1]
    assert sum("-> " in line for line in lines) == 2


def test_a_crossing_at_another_level() -> None:
    read = values("scenes", "--set", "plan.split=[2,2]", "--set", "plan.cross_at={sigma: [0.8]}")
    (crossing,) = read["crossings"]
    assert crossing["step"] == 3 and crossing["stage"] == 2
    assert crossing["sigma"] == pytest.approx(0.8, abs=1e-3)  # its time is rounded
    (usual,) = values("scenes-paper")["crossings"]
    assert usual["sigma"] == pytest.approx(0.64, abs=5e-3)
    assert usual["natural_missing_bits"] > crossing["natural_missing_bits"] > 0


def test_a_larger_side_of_the_matching_is_shown() -> None:
    lines = run("scenes", "--set", "plan.match_side=[128, 128]").stdout.splitlines()
    assert lines[-2].strip() == "samples are matched at 128x128"
    assert "matched" not in run("scenes").stdout


def test_a_table_fits_eighty_columns() -> None:
    for name in ("pixart", "sdxl-1+1+2", "wan21-14b"):
        lines = CliRunner().invoke(app, ["plan", name], env={"COLUMNS": "80"}).stdout.splitlines()
        assert max(len(line) for line in lines) <= 80
        assert sum("logSNR   sigma" in line and "cost" in line for line in lines) == 1


def test_brackets_in_a_name_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "pixart", "--set", "name=[red]a[bold]"]) == 0
    assert capsys.readouterr().out.strip().startswith("[red]a[bold]: time map")


# By area: 2 x 1/4 + 2 = 2.5; 1/16 + 1/4 + 2 = 2.3125; 3 x (480 x 832) / (720 x 1280) + 3 = 4.3.
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("sdxl", "2+2 steps at the cost of 2.5 full-resolution steps by area (1.60x less)"),
        ("sdxl-1+1+2", "1+1+2 steps at the cost of 2.31 full-resolution steps by area (1.73x less)"),
        ("wan21-14b", "3+3 steps at the cost of 4.3 full-resolution steps by area (1.40x less)"),
    ],
)
def test_the_cost_line(name: str, line: str) -> None:
    assert cost_line(load_recipe(name).build_plan()) == line


def test_json_holds_exactly_these_keys() -> None:
    read = values("sdxl")
    assert list(read) == ["stages", "steps", "crossings"]
    assert read["stages"] == [
        {"height": 512, "width": 512, "relative_cost": 0.25},
        {"height": 1024, "width": 1024, "relative_cost": 1.0},
    ]
    keys = ["index", "stage", "teacher_time", "model_time", "logsnr", "sigma", "height", "width"]
    assert [list(step) for step in read["steps"]] == [keys] * 4
    assert [list(crossing) for crossing in read["crossings"]] == [["step", "stage", "sigma", "natural_missing_bits"]]
    assert column(read, "sigma") == [flow_sigma(value) for value in column(read, "logsnr") if value is not None]
    assert column(read, "index") == [1, 2, 3, 4]
    assert column(read, "stage") == [1, 1, 2, 2]
    assert column(read, "width") == [512, 512, 1024, 1024]


def test_json_is_the_plan_to_the_last_digit() -> None:
    recipe = load_recipe("wan21-14b")
    plan, read = recipe.build_plan(), values("wan21-14b")
    assert read == plan_values(plan, recipe.schedule())
    assert column(read, "model_time") == [step.model_time for step in plan.steps]


def test_a_logsnr_of_minus_infinity_is_null() -> None:
    assert column(values("scenes"), "logsnr")[0] is None and column(values("scenes"), "sigma")[0] == 1.0
    assert None not in column(values("sdxl"), "logsnr")


def test_standard_output_is_the_json_alone() -> None:
    result = run("sdxl-paper", "--json")
    assert result.stderr.startswith("rmd: warning: sampling uses plain noise with beta 1, but training uses beta 0.2")
    assert result.stdout.startswith("{") and result.stdout.endswith("}\n")


def test_no_warning_without_a_reason() -> None:
    assert run("scenes").stderr == run("sdxl").stderr == ""


@pytest.mark.parametrize(
    ("option", "override"),
    [
        (["--steps", "8"], "plan.split=[4, 4]"),
        (["--thresholds=-6.0"], "plan.thresholds=[-6.0]"),
        (["--thresholds", "-6.0"], "plan.thresholds=[-6.0]"),
        (["--sides=480x832,720x1280"], "plan.sides=[480x832, 720x1280]"),
        (["--sides", "256, 1024"], "plan.sides=[256, 1024]"),
        (["--map", "vp"], "plan.map=vp"),
        (["--set", "plan.grid_end=0.1"], "plan.grid_end=0.1"),
    ],
)
def test_an_option_is_the_override_it_stands_for(option: list[str], override: str) -> None:
    recipe = load_recipe("pixart", [override])
    expected = plan_values(recipe.build_plan(), recipe.schedule())
    assert values("pixart", *option) == expected
    assert expected != values("pixart")


def test_three_stages_from_options() -> None:
    read = values("sdxl", "--sides=256,512,1024", "--thresholds=-6.0,-2.5")
    assert read == values("sdxl-1+1+2")


def test_one_stage_has_no_thresholds_and_no_crossing() -> None:
    result = run("pixart", "--sides=1024", "--thresholds=")
    assert result.stdout.splitlines()[-1] == "4 steps at the cost of 4 full-resolution steps by area (1.00x less)"
    assert result.stdout.splitlines()[0].strip() == "pixart"
    assert "crossing" not in result.stdout and "->" not in result.stdout
    assert result.stderr == ""


def test_set_can_be_given_more_than_once() -> None:
    read = values("pixart-paper", "--set", "plan.map=none", "--set", "plan.steps=2")
    assert column(read, "model_time") == [1000, 500]


def test_another_size_keeps_the_times() -> None:
    read, usual = values("sdxl", "--size", "768x1344"), values("sdxl")
    assert [(stage["height"], stage["width"]) for stage in read["stages"]] == [(384, 672), (768, 1344)]
    assert column(read, "model_time") == column(usual, "model_time")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--sides=256,512,1024"], "a split into 2+2 steps has 2 stages, but there are 3 sides"),
        (["--thresholds=-2.5,-6.0", "--sides=256,512,1024"], "thresholds must strictly increase"),
        (["--thresholds=5"], "stage 2 (1024x1024) gets no step"),
        (["--sides=1024,512"], "is larger than stage 2"),
        (["--sides=500,1024"], "is not divisible by 16"),
        (["--steps=0"], "override plan.steps=0: plan.steps should be greater than 0, but is 0"),
        (["--steps=1"], "at least 2 steps"),
        (["--thresholds=a"], "plan.thresholds[0] should be a number, but is 'a'"),
        (["--sides=5x"], "plan.sides[0] should be a side in pixels"),
        (["--size", "1000x1024"], "is not divisible by 16"),
        (["--size", "big"], "--size should be a side in pixels (512), [height, width] or HEIGHTxWIDTH, "),
        (["--images", "pictures"], "--images names the pictures that --fit measures: add --fit, or leave it out"),
        (["--plot", "plan.bmp"], "a plot is written to a file ending in .png, .svg, .pdf, not to 'plan.bmp'"),
    ],
)
def test_one_sentence_for_a_plan_that_cannot_be(arguments: list[str], sentence: str) -> None:
    result = run("pixart", *arguments)
    assert isinstance(result.exception, RMDError)
    assert sentence in str(result.exception)
    assert result.stdout == ""


def test_a_wrong_map_lists_the_maps() -> None:
    result = run("pixart", "--map", "rise")
    assert result.exit_code == 2
    assert "'raise', 'vp'," in result.stderr


@pytest.mark.parametrize("name", ["sdxl-1+1+2", "wan21-14b"])
def test_a_figure_is_drawn(name: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.png"
    result = run(name, "--plot", str(path), "--json")
    assert result.exit_code == 0
    assert f"rmd: drew {path}" in result.stderr
    json.loads(result.stdout)
    with Image.open(path) as picture:
        assert picture.size == (1200, 768)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=1 << 20)}
    # Each stage has its own colour, thick enough to be there unmixed.
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours


def test_a_figure_as_vectors_says_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("matplotlib").rcParams, "svg.fonttype", "none")
    path = tmp_path / "plan.svg"
    assert run("pixart-paper", "--plot", str(path)).exit_code == 0
    text = path.read_text(encoding="utf-8")
    for words in ("threshold -2.5", "stage 1: 512 x 512", "750 \N{RIGHTWARDS ARROW} 857", ">500<"):
        assert words in text


def test_a_figure_of_a_thousand_steps(tmp_path: Path) -> None:
    began = time.process_time()
    assert run("pixart", "--steps=1000", "--plot", str(tmp_path / "plan.png")).exit_code == 0
    assert time.process_time() - began < 30


def test_a_figure_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "folder.png"
    folder.mkdir()
    for path, sentence in (
        (folder, "is a folder: give the name of a file"),
        (tmp_path / "no" / "plan.svg", "No such file or directory"),
        (Path("/dev/null/plan.pdf"), "Not a directory"),
    ):
        result = run("pixart", "--plot", str(path))
        assert isinstance(result.exception, RMDError) and sentence in str(result.exception)
    assert list(tmp_path.rglob("*")) == [folder]


def test_a_figure_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "plan.svg"
    path.write_text("old", encoding="utf-8")
    assert run("pixart", "--plot", str(path)).exit_code == 0
    assert path.read_text(encoding="utf-8").startswith("<?xml") and list(tmp_path.iterdir()) == [path]
