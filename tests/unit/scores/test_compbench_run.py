"""T2V-CompBench's scripts in processes of their own: arguments, order, folders, interpreters, and continuing.

Scripts that take the arguments of T2V-CompBench's and write what these write stand in their place.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from benchmarks import result_csv, tiny_clip, write_prompts, write_videos

from rmd.common.errors import RMDError
from rmd.sample.plans import write_plan
from rmd.scores.compbench import CATEGORIES, NAMES, plan_compbench, read_results, totals
from rmd.scores.compbench_run import SCRIPTS, run_compbench
from rmd.scores.upstream import Calls

SCRIPT = """
import json, os, sys
from pathlib import Path

words = sys.argv[1:]
args = dict(zip(words[::2], words[1::2]))
place = Path(os.environ["NOTES"])
videos = args.get("--video-path") or args.get("--video_folder")
seen = sorted(os.listdir(videos)) if videos and Path(videos).is_dir() else []
note = {"script": Path(sys.argv[0]).name, "cwd": os.getcwd(), "args": args, "videos": len(seen), "first": seen[:1]}
with place.open("a") as file:
    file.write(json.dumps(note) + "\\n")
if note["script"] == os.environ.get("FAILING"):
    raise RuntimeError("no weights")
results = json.loads(RESULTS)
out = Path(args.get("--output-path") or args.get("--output_path") or ".")
for ending, text in results.items():
    (out / f"{args.get('--t2v-model') or args.get('--t2v_model')}{ending}").write_text(text)
"""


class Home:
    """Prompts, a plan and its videos, and a checkout of the tools with scripts."""

    def __init__(self, folder: Path, categories: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.out, self.notes = folder, folder / "out", folder / "notes.jsonl"
        self.plan = plan_compbench(write_prompts(folder / "prompts"), categories=categories)
        write_plan(self.plan, folder / "plan.json")
        write_videos(self.plan, folder / "videos")
        for name in categories:
            tiny_clip(folder / "videos" / name / "0001.mp4", frames=24, fps=8)
        monkeypatch.setenv("NOTES", str(self.notes))
        for category in CATEGORIES:
            last = SCRIPTS[category.name][-1].path
            size = 100 // len(category.results)
            head = "id,frames,x,Score_1" if len(category.results) > 1 else "name,prompt,answer,Score"
            results = {ending: result_csv([1.0] * size, head=head) for ending in category.results}
            for script in SCRIPTS[category.name]:
                path = folder / "checkout" / script.path
                path.parent.mkdir(parents=True, exist_ok=True)
                found = json.dumps(results if script.path == last else {})
                path.write_text(SCRIPT.replace("RESULTS", repr(found)), encoding="utf-8")
            meta = folder / "checkout" / "meta_data" / category.meta
            meta.parent.mkdir(parents=True, exist_ok=True)
            meta.touch()

    def run(
        self, *categories: str, pythons: dict[str, Path] | None = None, more: dict[str, Sequence[str]] | None = None
    ) -> list[Path]:
        return run_compbench(
            self.folder / "plan.json", self.plan, self.folder / "videos", self.folder / "checkout",
            {"": Path(sys.executable)} if pythons is None else pythons, Calls(self.out), more=more,
            categories=categories,
        )  # fmt: skip

    def noted(self) -> list[dict[str, object]]:
        lines = self.notes.read_text(encoding="utf-8").splitlines() if self.notes.exists() else []
        return [json.loads(line) for line in lines]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    return Home(tmp_path, ("motion_binding", "interaction"), monkeypatch)


def test_all_categories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path, NAMES, monkeypatch)
    files = home.run()
    assert len(files) == 8 and all(file.is_file() for file in files)
    result = totals(read_results(files))
    assert result.edition == 1 and result.categories["interaction"].mean == 0.0
    assert result.categories["motion_binding"].mean == pytest.approx(1) and not (home.out / "work").exists()
    noted = home.noted()
    assert [note["script"] for note in noted] == [script.name for name in NAMES for script in SCRIPTS[name]]
    for note in noted:
        if note["script"] in ("eval_interaction.py", "run_depth.py", "eval_numeracy.py", "motion_binding_seg.py"):
            assert note["videos"] == 100 and note["first"] == ["0001.mp4"]
    assert len(list((home.out / "logs").iterdir())) == len(noted) == 11
    before = len(noted)
    assert home.run() == files and len(home.noted()) == before


def test_arguments_and_folders_of_a_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts of motion get the number of frames and their rate, and each finds what the one before it wrote."""
    home = Home(tmp_path, ("motion_binding", "spatial_relationships"), monkeypatch)
    home.run("motion_binding", "spatial_relationships", more={"run_depth.py": ["--encoder", "vits"]})
    notes = {str(note["script"]): note for note in home.noted()}
    first = notes["motion_binding_seg.py"]["args"]
    assert isinstance(first, dict) and (first["--total_frame"], first["--fps"]) == ("24", "8")
    work = Path(first["--output_dir"]).parent
    assert work.parent == (home.out / "work").resolve()
    assert first["--video_folder"] == str(work / "video" / "motion_binding")
    second = notes["eval_motion_binding_foreground.py"]["args"]
    assert isinstance(second, dict) and second["--mask_folder"] == first["--output_dir"]
    assert second["--video_folder"] == str(work / "video" / "video_standard" / "motion_binding")
    depth, relations = notes["run_depth.py"]["args"], notes["eval_spatial_relationships.py"]["args"]
    assert isinstance(depth, dict) and isinstance(relations, dict)
    assert depth["--encoder"] == "vits" and relations["--depth_folder"] == depth["--output_dir"]
    work = Path(depth["--output_dir"]).parent
    assert relations["--frame_folder"] == str(work / "video" / "frames" / "spatial_relationships")
    checkout = (home.folder / "checkout").resolve()
    assert notes["eval_spatial_relationships.py"]["cwd"] == str(checkout)
    assert notes["run_depth.py"]["cwd"] == str(checkout / "Depth-Anything")


def test_a_failure_and_continuing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILING", "eval_motion_binding_background.py")
    with pytest.raises(RMDError, match=r"^motion_binding-eval_motion_binding_background failed with status 1 \(log: "):
        home.run("interaction", "motion_binding")
    assert [path.name for path in home.out.glob("*.csv")] == ["rmd_object_interactions_score.csv"]
    monkeypatch.delenv("FAILING")
    home.run("interaction", "motion_binding")
    names = [note["script"] for note in home.noted()]
    assert names.count("eval_interaction.py") == 1 and names.count("eval_motion_binding_background.py") == 2


def test_every_tool_has_its_interpreter(home: Home, tmp_path: Path) -> None:
    link = tmp_path / "python-of-dot"
    link.symlink_to(sys.executable)
    home.run("motion_binding", pythons={"dot": link, "Grounded-Segment-Anything": Path(sys.executable)})
    with pytest.raises(RMDError, match=r"^no interpreter is named for LLaVA: give --python LLaVA=PATH$"):
        home.run("interaction", pythons={"dot": link})
    with pytest.raises(RMDError, match=r"nothing is not a program: give --python "):
        home.run("interaction", pythons={"": tmp_path / "nothing"})


def test_what_is_checked_before_anything_runs(home: Home) -> None:
    with pytest.raises(
        RMDError, match=r"^unknown category 'motion' \(did you mean 'motion_binding'\?\): use one of con"
    ):
        home.run("motion")
    with pytest.raises(RMDError, match=r"^unknown script 'eval\.py'"):
        home.run(more={"eval.py": []})
    (home.folder / "checkout" / "dot" / "motion_binding_score_cal.py").unlink()
    with pytest.raises(
        RMDError, match=r"checkout has no dot/motion_binding_score_cal\.py: put it there, as T2V-CompBe"
    ):
        home.run()
    with pytest.raises(RMDError, match=r"^the plan has no videos of action_binding: it has those of motion_binding, "):
        home.run("action_binding")
    (home.folder / "checkout" / "meta_data" / "object_interactions.json").unlink()
    with pytest.raises(RMDError, match=r"checkout has no meta_data/object_interactions\.json: put it there"):
        home.run("interaction")
    (home.folder / "checkout" / "meta_data" / "object_interactions.json").touch()
    (home.folder / "videos" / "interaction" / "0007.mp4").unlink()
    with pytest.raises(RMDError, match=r"^1 of the plan's 100 videos are missing in .*, such as 'interaction/0007"):
        home.run("interaction")
    home.plan = home.plan.model_copy(update={"benchmark": "vbench"})
    with pytest.raises(RMDError, match=r"is a plan of another benchmark: make one with `rmd eval compbench plan`$"):
        home.run("interaction")
    assert not home.noted()


def test_scripts_that_end_without_results(home: Home) -> None:
    script = home.folder / "checkout" / SCRIPTS["interaction"][0].path
    script.write_text("print('done')", encoding="utf-8")
    with pytest.raises(
        RMDError, match=r"^T2V-CompBench ended without rmd_object_interactions_score\.csv: see its logs "
    ):
        home.run("interaction")
