"""`rmd train`: a complete run, stopping and resuming, a dry run, and one sentence for each error of a user."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import TINY
from helpers import PROMPTS

from rmd.cli import train as command
from rmd.cli.app import main
from rmd.cli.progress import progress_bar
from rmd.cli.train import plan_line, prepare
from rmd.common.files import LOCK, locked
from rmd.models.student import load_student, read_student
from rmd.recipes.schema import load_recipe
from rmd.train.loop import Trainer
from rmd.train.parallel import Parallel
from rmd.train.tracking import read_metrics
from rmd.worlds.still.grammar import scene_captions

Captured = pytest.CaptureFixture[str]


def written() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


def student_of(folder: str) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_student(Path(folder)).backbone.denoiser.state_dict()
    return state


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert not [name for name in left if not torch.equal(left[name], right[name])]


def stop_after(iterations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process a SIGTERM in the given iteration."""
    usual: Callable[[Trainer, int], Any] = Trainer.iterate

    def iterate(self: Trainer, iteration: int) -> Any:
        if iteration == iterations - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return usual(self, iteration)

    monkeypatch.setattr(Trainer, "iterate", iterate)


def test_a_run(recipe: Path, teacher: Path, capsys: Captured) -> None:
    assert main(["train", str(recipe)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "tiny: 16x16 at 1000, 857 -> 32x32 at 500, 250; "
        "2+2 steps at the cost of 2.5 full-resolution steps by area (1.60x less)",
        "student: runs/tiny/student (for diffusers; its plan is in rmd_config.json)",
        "run: runs/tiny (metrics.jsonl, pictures, checkpoints); curves: tensorboard --logdir runs/tiny",
    ]
    lines = err.splitlines()
    assert len(lines) == 6 and lines[2].startswith("training: 3/6, ")
    assert " s left, student loss " in lines[2] and " gap " in lines[2] and lines[2].endswith(" s/it")
    assert [row["iteration"] for row in read_metrics(Path("runs/tiny/metrics.jsonl"))] == [1, 2, 3, 4, 5, 6]
    student = load_student(Path("runs/tiny/student"))
    assert student.plan == load_recipe(str(recipe)).build_plan()
    trained = student.backbone.denoiser.state_dict()
    assert any(not torch.equal(value, trained[name]) for name, value in TINY["pixart"]().denoiser.state_dict().items())


def test_another_folder_and_settings(recipe: Path, capsys: Captured) -> None:
    arguments = ["--set", "train.iterations=1", "--set", "train.seed=5", "--out", "there/it", "--threads", "1"]
    assert main(["train", str(recipe), *arguments]) == 0
    assert [path.name for path in Path().iterdir()] == ["there"]
    used = load_recipe("there/it/recipe.yaml")
    assert (used.train.iterations, used.train.seed) == (1, 5)
    assert json.loads(Path("there/it/student/rmd_config.json").read_text())["recipe"] == "tiny"


def test_stopped_and_resumed_is_the_whole_run(recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    more = ["--set", "train.iterations=3", "--threads", "1"]
    assert main(["train", str(recipe), *more, "--out", "whole"]) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        assert main(["train", str(recipe), *more, "--out", "my run"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("stopped at iteration 2 of 3; saved in my run, resume with: rmd train ")
    assert not Path("my run/student").exists()
    again = shlex.split(said.partition("resume with: ")[2])
    assert again == ["rmd", "train", str(recipe), *more[:2], "--out", "my run", *more[2:], "--resume"]
    assert main(again[1:]) == 0
    assert_same(student_of("my run/student"), student_of("whole/student"))
    # once more: nothing is left to train, the student is saved again
    assert main(again[1:]) == 0
    assert_same(student_of("my run/student"), student_of("whole/student"))


def test_the_plan_in_a_line() -> None:
    assert plan_line(load_recipe("pixart-paper").build_plan()) == (
        "512x512 at 1000, 857 -> 1024x1024 at 500, 250; "
        "2+2 steps at the cost of 2.5 full-resolution steps by area (1.60x less)"
    )
    assert plan_line(load_recipe("pixart", ["plan.sides=[1024]", "plan.thresholds=[]"]).build_plan()).startswith(
        "1024x1024 at 1000, 750, 500, 250; 4 steps "
    )


def test_warnings_of_the_plan(recipe: Path, capsys: Captured) -> None:
    unlike = ["crossing.rule=plain", "crossing.beta=1.0", "crossing.train_beta=0.2"]
    settings = [part for setting in unlike for part in ("--set", setting)]
    assert main(["train", str(recipe), "--dry-run", *settings]) == 0
    assert capsys.readouterr().err.startswith("rmd: warning: sampling uses plain noise with beta 1, but training uses")


def test_what_is_shown_of_an_iteration(capsys: Captured) -> None:
    with progress_bar() as report:
        show = command._reporter(report, 40)
        for done in range(21, 41):  # a resumed run
            show(done, {"student_loss": 0.25, "gap": 0.125, "seconds": 2.0})
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"training: {4 * i}/40" for i in range(6, 11)]
    assert all(line.endswith("left, student loss 0.25, gap 0.125, 2.00 s/it") for line in lines)


# Every row: what is changed in the recipe, and what the one sentence must say.
WRONG = [
    (["train.iteration=3"], "there is no key train.iteration; did you mean train.iterations?"),
    (["data.prompts=none.txt"], "there is no prompt file none.txt: give a text file with one prompt per line"),
    (["teacher=FOLDER"], "is not a diffusers pipeline: it has no model_index.json"),
    (["teacher=no/such/thing"], "there is no folder no/such/thing, and "),
    (["family=sdxl"], "family is sdxl, but the teacher"),
    (["noise.rescale_betas_zero_snr=true"], "noise.rescale_betas_zero_snr is True, and the teacher's is False"),
    (["noise.beta_end=0.0200001"], "noise.beta_end is 0.0200001, and the teacher's is 0.02"),
    (["noise={kind: flow, shift: 3.0}"], "noise.kind is flow, and the teacher's is vp"),
    (["plan.shift=3.0"], "plan.shift is for noise of kind flow, and this recipe's is of kind vp: leave it out"),
    (["plan.sides=[14, 28]", "plan.multiple=2"], "plan.sides: stage 1 of 14x14 pixels is not divisible by 4"),
    (["plan.sides=[16, [32, 22]]", "plan.multiple=2"], "plan.sides: stage 2 of 32x22 pixels is not divisible by 4"),
    (["plan.sides=[32]", "plan.thresholds=[]", "plan.multiple=7"], "is not divisible by 7"),
]


@pytest.mark.parametrize(("overrides", "sentence"), WRONG)
def test_one_sentence_and_nothing_written(
    overrides: list[str], sentence: str, recipe: Path, tmp_path: Path, capsys: Captured
) -> None:
    noise = [o for o in overrides if o.startswith("noise={")]
    if noise:  # another kind of noise replaces the group, which an override would only add to
        text = recipe.read_text(encoding="utf-8")
        start, end = text.index("noise:"), text.index("plan:")
        recipe.write_text(text[:start] + "noise: {kind: flow, shift: 3.0}\n" + text[end:], encoding="utf-8")
    settings = [o.replace("FOLDER", str(tmp_path / "files")) for o in overrides if o not in noise]
    assert main(["train", str(recipe), *(part for o in settings for part in ("--set", o))]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("rmd: ") and err.count("\n") == 1
    assert sentence in err
    assert written() == []


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "gives no prompts (it is empty): check its content and the filters of data"),
        (b"\n \n", "gives no prompts (2 empty): check its"),
        ("a caf\N{LATIN SMALL LETTER E WITH ACUTE}".encode("latin-1"), "is not UTF-8 (byte 5): save it as UTF-8 text"),
    ],
)
def test_a_bad_prompt_file(
    content: bytes, sentence: str, recipe: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmd.models.teacher.load_backbone", None)  # found before any weight is loaded
    (recipe.parent / "prompts.txt").write_bytes(content)
    assert main(["train", str(recipe)]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"rmd: {recipe.parent}")
    assert sentence in err
    assert written() == []


def test_an_unknown_recipe(capsys: Captured) -> None:
    assert main(["train", "scnes"]) == 1
    assert capsys.readouterr().err.startswith("rmd: there is no recipe 'scnes' (did you mean 'scenes'?)")


def times() -> dict[Path, int]:
    """Return when every file was changed, except the lock file, which some versions of filelock touch."""
    return {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.name != LOCK}


def test_the_run_is_there_already(recipe: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    one = ["train", str(recipe), "--set", "train.iterations=1"]
    assert main(one) == 0
    before = times()
    capsys.readouterr()
    monkeypatch.setattr("rmd.models.teacher.load_backbone", None)  # found before any weight is loaded
    assert main(one) == 1
    assert capsys.readouterr() == (
        "",
        "rmd: runs/tiny holds a run already: add --resume to continue it, or choose another --out\n",
    )
    assert times() == before


def test_nothing_to_resume(recipe: Path, capsys: Captured) -> None:
    assert main(["train", str(recipe), "--resume"]) == 1
    sentence = "rmd: nothing to resume in runs/tiny: it holds no checkpoint; run without --resume\n"
    assert capsys.readouterr() == ("", sentence)
    assert written() == []


def test_resumed_with_other_settings(recipe: Path, capsys: Captured) -> None:
    assert main(["train", str(recipe), "--set", "train.iterations=1"]) == 0
    capsys.readouterr()
    assert main(["train", str(recipe), "--set", "optim.ema=0.25", "--resume"]) == 1
    assert "was made with another recipe" in capsys.readouterr().err


def test_the_contents_of_prompts_and_teacher_make_a_run_and_not_their_places(
    recipe: Path, teacher: Path, tmp_path: Path, capsys: Captured
) -> None:
    files = tmp_path / "files"
    assert main(["train", str(recipe), "--set", "train.iterations=1"]) == 0
    resume = ["train", str(recipe), "--resume", "--set", "train.iterations=2"]
    texts = (files / "prompts.txt").read_text(encoding="utf-8")
    (files / "elsewhere.txt").write_text(f"\n{texts}\n\n", encoding="utf-8")
    shutil.copytree(teacher, files / "same")
    with torch.no_grad():
        other = TINY["pixart"]()
        next(other.denoiser.parameters()).mul_(1.5)
    other.pipe.save_pretrained(files / "other")
    (files / "prompts.txt").write_text(f"one more\n{texts}", encoding="utf-8")
    capsys.readouterr()
    assert main(resume) == 1
    what = "rmd: the checkpoint runs/tiny/checkpoints/step-000001 was made with"
    assert capsys.readouterr().err == (
        f"{what} other prompts (4 then, 5 now): resume with the same prompts, add --reset-optimizer to continue "
        "with these, or choose another --out\n"
    )
    resume += ["--set", f"data.prompts={files / 'elsewhere.txt'}"]
    assert main([*resume, "--set", f"teacher={files / 'other'}"]) == 1
    assert capsys.readouterr().err.startswith(
        f"{what} another teacher, which has other weights: resume with the same teacher"
    )
    before = load_recipe("runs/tiny/recipe.yaml")
    assert before.data.prompts == str(files / "prompts.txt")  # a run that is refused changes nothing
    assert main([*resume, "--set", f"teacher={files / 'same'}"]) == 0
    assert load_recipe("runs/tiny/recipe.yaml").teacher == str(files / "same")
    assert main([*resume, "--set", f"teacher={files / 'other'}", "--reset-optimizer"]) == 0


def test_two_runs_do_not_share_a_folder(recipe: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "rmd: another process is writing to runs/tiny: wait until it has finished, or choose another folder\n"
    usual, refused = Trainer.train, []

    def train(self: Trainer, **options: Any) -> int:
        for more in ([], ["--resume"], ["--profile", "1"]):
            with monkeypatch.context() as patch:
                patch.setattr("rmd.models.teacher.load_backbone", None)  # refused before any weight is loaded
                refused.append((main(["train", str(recipe), *more]), capsys.readouterr().err))
        return usual(self, **options)

    monkeypatch.setattr(Trainer, "train", train)
    assert main(["train", str(recipe), "--set", "train.iterations=1"]) == 0
    assert refused == [(1, said)] * 3
    with locked(Path("runs/tiny")):
        assert main(["train", str(recipe), "--resume", "--dry-run"]) == 0  # which writes nothing


def test_a_checkpoint_that_could_run_code_is_neither_resumed_nor_exported(recipe: Path, capsys: Captured) -> None:
    class Call:
        def __reduce__(self) -> Any:
            return os.system, ("touch proof",)

    assert main(["train", str(recipe), "--set", "train.iterations=1"]) == 0
    checkpoint = Path("runs/tiny/checkpoints/step-000001")
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Call()))
    capsys.readouterr()
    for arguments in (
        ["train", str(recipe), "--resume"],
        ["train", str(recipe), "--resume", "--reset-optimizer"],
        ["export", str(checkpoint), "--to", "student", "--out", "exported"],
    ):
        assert main(arguments) == 1
        assert capsys.readouterr().err == (
            f"rmd: the checkpoint {checkpoint} is not one that RMD wrote: its index names posix.system, with which it "
            "could run code; nothing of it was run or loaded; delete it unless you know where it comes from\n"
        )
    assert not Path("proof").exists() and not Path("exported").exists()


def test_a_finished_run_goes_on_to_more_iterations(recipe: Path) -> None:
    more = ["--set", "train.iterations=3"]
    assert main(["train", str(recipe), "--set", "train.iterations=2", "--set", "train.checkpoint_every=1"]) == 0
    assert main(["train", str(recipe), "--resume", *more]) == 0
    longer = load_student(Path("runs/tiny/student")).backbone.denoiser.state_dict()
    assert main(["train", str(recipe), "--out", "whole", *more]) == 0
    assert_same(longer, load_student(Path("whole/student")).backbone.denoiser.state_dict())


def test_the_folder_is_a_file(recipe: Path, capsys: Captured) -> None:
    Path("it").touch()
    assert main(["train", str(recipe), "--out", "it"]) == 1
    assert capsys.readouterr() == ("", "rmd: it is a file: choose another --out\n")


def test_the_packaged_teacher(
    teacher: Path, recipe: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("rmd.worlds.assets.assets_folder", lambda: tmp_path)
    packaged = ["train", str(recipe), "--dry-run", "--set", "teacher=scenes"]
    assert main(packaged) == 1
    assert (
        "lacks the teacher scenes: build it (hours) with `python -m research.scenes train-teacher"
        in capsys.readouterr().err
    )
    (tmp_path / "teacher").symlink_to(teacher)
    assert main(packaged) == 0


def test_prompts_of_the_scenes(recipe: Path) -> None:
    trainer = prepare(load_recipe(str(recipe), ["data.prompts=scenes"]), Path("run"), None, "cpu", Parallel())
    captions = scene_captions(64, seed=0, training=True)
    assert set(captions) <= set(trainer.prompts.texts) and not set(PROMPTS) & set(trainer.prompts.texts)


def test_a_profile_is_a_trace_and_no_run(recipe: Path, capsys: Captured) -> None:
    assert main(["train", str(recipe), "--out", "run", "--profile", "1"]) == 0
    out = capsys.readouterr().out
    assert "trace of 1 iteration: run/trace.json" in out and "Self CPU" in out
    names = {event.get("name") for event in json.loads(Path("run/trace.json").read_text())["traceEvents"]}
    assert {"student", "fake"} <= names
    assert written() == ["run", f"run/{LOCK}", "run/trace.json"]


def test_only_packaged_worlds_have_a_judge(recipe: Path, capsys: Captured) -> None:
    assert main(["train", str(recipe), "--set", "evaluation.every=5"]) == 1
    said = capsys.readouterr().err
    assert "rmd: the judge cannot mark samples of " in said and "set evaluation.metrics to some of hps, " in said
    settings = ["evaluation.every=5", "evaluation.samples=3"]
    judged = prepare(load_recipe("scenes", settings), Path("run"), None, "cpu", Parallel())
    assert judged.judge is not None
    assert judged.judge(judged.backbone.denoiser).recorded.keys() >= {"judge/all_right"}


@pytest.mark.parametrize(("mode", "form"), [("full", "diffusers-full"), ("lora", "diffusers-lora")])
def test_a_checkpoint_is_exported_as_the_finished_run_is(mode: str, form: str, recipe: Path, capsys: Captured) -> None:
    changes = (f"roles.mode={mode}", "train.iterations=2", "train.checkpoint_every=1")
    assert main(["train", str(recipe), *(word for change in changes for word in ("--set", change))]) == 0
    for source in ("runs/tiny", "runs/tiny/checkpoints/step-000002"):
        out = f"out-{len(source)}"
        assert main(["export", source, "--to", "student", "--out", out]) == 0
        assert_same(student_of(out), student_of("runs/tiny/student"))
    assert main(["export", "runs/tiny/checkpoints/step-000001", "--to", form, "--out", "exported"]) == 0
    assert "exported (loaded back: the same samples" in capsys.readouterr().out
    command = ["export", "runs/tiny", "--to", "student", "--out", "again", "--base-model", "someone/teacher"]
    assert main(command) == 0
    assert read_student("again").teacher == "someone/teacher"
    capsys.readouterr()
    assert main(["export", "runs", "--to", "student", "--out", "none"]) == 1
    assert "rmd: runs is neither a checkpoint nor the folder of a run that has one" in capsys.readouterr().err
    Path("runs/tiny/recipe.yaml").unlink()
    assert main(["export", "runs/tiny", "--to", "student", "--out", "none"]) == 1
    assert "recipe.yaml: give a checkpoint that lies in its run's folder" in capsys.readouterr().err
