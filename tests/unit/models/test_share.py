"""Exports and uploads contain no path of this machine, and a student without a public teacher is not uploaded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from families import TINY, make_student
from safetensors import safe_open

from rmd.cli.app import main
from rmd.common.errors import RMDError
from rmd.export.formats import check_out, export_student
from rmd.models import share as module
from rmd.models.hub import shared_prompts
from rmd.models.share import shared_copy, shared_teacher, upload, without_paths
from rmd.models.student import CONFIG_NAME, LORA_NAME, read_student
from rmd.sample.pipeline import RMDPipeline

BASE = "someone/their-teacher"
PAIRS = [
    *((family, "lora", to) for family in sorted(TINY) for to in ("diffusers-lora", "comfyui", "fused")),
    ("sdxl", "lora", "kohya"),
    *((family, "full", "diffusers-full") for family in sorted(TINY)),
]
PRIVATE = 0o077
"""A umask that lets only the owner read and write."""
MASKED = [pair for pair in PAIRS if pair[0] == "pixart" or pair[2] == "kohya"]
SLOW = [("sdxl", "fused"), ("sd3", "comfyui"), ("sd3", "fused"), ("wan", "comfyui")]


class Hub:
    """Stands in for the Hub, which tests cannot reach, and keeps the content of the uploaded files."""

    files: dict[str, bytes]

    def __init__(self, token: str | None = None) -> None:
        pass

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: Path) -> None:
        paths = (path for path in folder_path.rglob("*") if path.is_file())
        Hub.files = {str(path.relative_to(folder_path)): path.read_bytes() for path in paths}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    monkeypatch.setattr(module, "HfApi", Hub)
    Hub.files = {}
    return Hub


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, str], Path]:
    """Return a function that makes a student and exports it, once, under a umask that lets no one else read it.

    The export is in `out`, beside the folders `student` and `teacher`.
    """

    @cache
    def export(family: str, mode: str, to: str) -> Path:
        folder: Path = tmp_path_factory.mktemp(f"{family}-{mode}-{to}")
        student = make_student(folder, family, mode, data={"prompts": str(folder / "my" / "prompts.txt")})
        with umask(PRIVATE):
            return export_student(student, to, folder / "out")

    return export


def naming(folder: Path, path: Path) -> list[str]:
    """List the files in a folder that contain a path."""
    return [str(file) for file in folder.rglob("*") if file.is_file() and str(path).encode() in file.read_bytes()]


@pytest.mark.parametrize(
    ("family", "mode", "to"),
    [pytest.param(*pair, marks=[pytest.mark.slow] if (pair[0], pair[2]) in SLOW else []) for pair in PAIRS],
)
def test_no_file_of_an_export_holds_a_path_of_this_machine(
    family: str, mode: str, to: str, exports: Callable[[str, str, str], Path]
) -> None:
    out = exports(family, mode, to)
    assert naming(out.parent / "student", out.parent), "the run's own student says where its teacher is"
    assert naming(out, out.parent) == []
    config = json.loads((out / CONFIG_NAME).read_text())
    assert (config["teacher"], config["prompts"]) == (None, "prompts.txt")
    card = (out / "README.md").read_text()
    assert "base_model" not in card.partition("\n---\n")[0] and "`--base-model OWNER/NAME`" in card


def test_an_export_names_the_base_model_that_is_given(tmp_path: Path) -> None:
    out = export_student(make_student(tmp_path, "sdxl", "lora"), "fused", tmp_path / "out", base_model=BASE)
    assert json.loads((out / CONFIG_NAME).read_text())["teacher"] == BASE
    assert f"\nbase_model: {BASE}\n" in (out / "README.md").read_text()


def test_the_header_of_an_exported_adapter_holds_what_peft_needs_and_nothing_else(
    exports: Callable[[str, str, str], Path],
) -> None:
    with safe_open(exports("sdxl", "lora", "diffusers-lora") / LORA_NAME, "pt") as file:
        header = file.metadata()
    assert set(header) == {"format", "lora_adapter_metadata"}
    assert set(json.loads(header["lora_adapter_metadata"])) == {"unet.r", "unet.lora_alpha", "unet.target_modules"}


@pytest.mark.parametrize(("family", "mode", "to"), MASKED)
def test_exported_files_have_the_mode_that_the_umask_gives(
    family: str, mode: str, to: str, exports: Callable[[str, str, str], Path]
) -> None:
    check_modes(exports(family, mode, to), PRIVATE)


def test_exported_files_can_be_read_by_others_where_the_umask_lets_them(tmp_path: Path) -> None:
    student = make_student(tmp_path, "pixart", "full")
    with umask(0o022):
        out = export_student(student, "diffusers-full", tmp_path / "out")
    check_modes(out, 0o022)


def check_modes(out: Path, mask: int) -> None:
    """Check that every file and folder of an export has the permissions that a umask leaves."""
    modes = {path.name: path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()}
    assert modes and set(modes.values()) == {0o666 & ~mask}, modes
    assert {path.stat().st_mode & 0o777 for path in (out, *out.rglob("*")) if path.is_dir()} == {0o777 & ~mask}


@pytest.mark.parametrize(
    ("teacher", "name"),
    [
        ("someone/model", "someone/model"),
        ("scenes", "scenes"),
        ("scenes-wan", "scenes-wan"),
        ("model", None),
        ("/data/model", None),
        ("../someone/model", None),
        ("~/model", None),
        ("runs/a/student", None),
        ("C:\\models\\sdxl", None),
        ('a/b"); import os ("', None),
        ("a/b\n", None),
        ("", None),
        (None, None),
    ],
)
def test_a_teacher_is_named_where_others_can_find_it(teacher: str | None, name: str | None) -> None:
    assert shared_teacher(teacher) == name
    assert shared_teacher(teacher, BASE) == BASE


def test_a_folder_with_the_name_of_a_repository_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shared_teacher("someone/model") == "someone/model"
    (tmp_path / "someone" / "model").mkdir(parents=True)
    assert shared_teacher("someone/model") is None


@pytest.mark.parametrize("name", ["model", "/data/model", "a/b/c", "scenes", "", "a/b c", "a/é"])
def test_a_base_model_is_a_repository(name: str) -> None:
    with pytest.raises(RMDError, match=r"^the base model must be the name of a repository of the Hub, as OWNER/NAME"):
        shared_teacher("scenes", name)


@pytest.mark.parametrize(
    ("prompts", "name"),
    [
        ("/home/me/prompts.txt", "prompts.txt"),
        ("prompts.txt", "prompts.txt"),
        ("C:\\me\\prompts.txt", "prompts.txt"),
        ("shards/*.tar", "*.tar"),
        ("hf:someone/prompts", "hf:someone/prompts"),
        ("hf:/home/me/prompts", "prompts"),
        ("scenes", "scenes"),
    ],
)
def test_prompts_are_named_without_their_folder(prompts: str, name: str) -> None:
    assert shared_prompts(prompts) == shared_prompts(shared_prompts(prompts)) == name


def test_paths_are_taken_out_of_configs_and_nothing_else_is(tmp_path: Path) -> None:
    kept = {
        "sides": [1, 2],
        "path": "/no/such/place",
        "token": "/",
        "_name_or_path": "someone/model",
        "deep": [{"a": 1}],
    }
    here = {"_name_or_path": "here", "name_or_path": "", "file": str(tmp_path), "deep": [{"_name_or_path": "../a"}]}
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(kept | {"x": here, "list": ["a", str(tmp_path)]}))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "same.json").write_text('{"a":1}')
    without_paths(tmp_path)
    expected = kept | {"x": {"deep": [{}]}, "list": ["a"]}
    assert json.loads((tmp_path / "unet" / "config.json").read_text()) == expected
    assert (tmp_path / "broken.json").read_text() == "{" and (tmp_path / "same.json").read_text() == '{"a":1}'


def test_a_copy_to_share_leaves_the_folder_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    (folder / "unet").mkdir(parents=True)
    text = json.dumps({"_name_or_path": str(tmp_path)})
    (folder / "unet" / "config.json").write_text(text)
    (folder / "weights").write_bytes(b"w")
    with shared_copy(folder) as copy:
        assert json.loads((copy / "unet" / "config.json").read_text()) == {}
        assert (copy / "weights").read_bytes() == b"w"
    assert not copy.exists()
    assert (folder / "unet" / "config.json").read_text() == text and (folder / "weights").read_bytes() == b"w"


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_what_is_pushed_names_the_teacher_and_holds_no_path(mode: str, tmp_path: Path, hub: type[Hub]) -> None:
    student = make_student(tmp_path, "pixart", mode)
    pipe = RMDPipeline.from_pretrained(student)
    refusal = r"^the student cannot be uploaded because its config names a folder of this machine, .*base_model="
    for push in (pipe.push_to_hub, lambda name: upload(student, name)):
        with pytest.raises(RMDError, match=refusal):
            push("me/student")
    assert hub.files == {}
    assert pipe.push_to_hub("me/student", base_model=BASE) == "https://huggingface.co/me/student"
    assert json.loads(hub.files[CONFIG_NAME])["teacher"] == BASE
    assert not [name for name, content in hub.files.items() if str(tmp_path).encode() in content]
    pushed = hub.files
    upload(student, "me/student", base_model=BASE)
    assert hub.files.keys() == pushed.keys()
    assert not [name for name, content in hub.files.items() if str(tmp_path).encode() in content]
    assert str(tmp_path / "teacher") == read_student(student).teacher, "the student itself stays as it is"


def test_a_packaged_teacher_and_one_of_the_hub_need_no_base_model(tmp_path: Path, hub: type[Hub]) -> None:
    student = make_student(tmp_path, "sdxl", "lora")
    for name in ("scenes", "someone/model"):
        config = json.loads((student / CONFIG_NAME).read_text()) | {"teacher": name}
        (student / CONFIG_NAME).write_text(json.dumps(config))
        upload(student, "me/student")
        assert json.loads(hub.files[CONFIG_NAME])["teacher"] == name


def test_a_card_that_names_the_folder_is_not_uploaded(tmp_path: Path, hub: type[Hub]) -> None:
    student = make_student(tmp_path, "sdxl", "lora")
    (student / "README.md").write_text(f"A student of {tmp_path / 'teacher'}.")
    with pytest.raises(RMDError, match=r"^README.md names the folder .* of this machine: export the student again"):
        upload(student, "me/student", base_model=BASE)
    assert hub.files == {}


def test_an_upload_that_fails_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = make_student(tmp_path, "sdxl", "lora")
    with pytest.raises(RMDError, match=r"^the repository must be the name of a repository of the Hub"):
        upload(student, "student", base_model=BASE)
    with pytest.raises(RMDError, match=r"^cannot upload to me/student: .*; check the name, the connection") as error:
        upload(student, "me/student", base_model=BASE)  # HF_HUB_OFFLINE is set
    assert "\n" not in str(error.value)


def test_the_command_says_that_the_teacher_is_not_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hub: type[Hub]
) -> None:
    student, out = make_student(tmp_path, "sdxl", "lora"), tmp_path / "out"
    command = ["export", str(student), "--to", "diffusers-lora", "--out", str(out)]
    capsys.readouterr()  # progress bars from making the student
    assert main(command) == 0
    told = capsys.readouterr()
    assert told.out == f"diffusers-lora: {out} (loaded back: the same samples; its card is README.md)\n"
    assert told.err == (
        "the teacher is a folder of this machine, so the export does not name it; to name its repository on the Hub, "
        "add --base-model OWNER/NAME\n"
    )
    assert main([*command, "--base-model", BASE]) == 0
    assert capsys.readouterr().err == ""
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert main([*command, "--push", "me/student"]) == 1
    assert capsys.readouterr().err.startswith("rmd: the student cannot be uploaded because its config names a folder")
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before, "it is said before anything is done"
    assert main([*command, "--push", "me/student", "--base-model", BASE]) == 0
    assert capsys.readouterr().out.endswith("\nuploaded: https://huggingface.co/me/student\n")
    assert f"\nbase_model: {BASE}\n" in hub.files["README.md"].decode()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"--to": "khoya"}, "unknown format 'khoya' (did you mean 'kohya'?): use one of diffusers-lora, "),
        ({"--out": "a-file"}, "cannot write to a-file: {here}/a-file is a file; choose another --out"),
        ({"--out": "a-file/x/out"}, "cannot write to a-file/x/out: {here}/a-file is a file; choose another --out"),
        ({"--out": "student"}, "the export would replace student, which it is made from: choose another --out"),
        ({"--out": "student/../student/"}, "the export would replace student, which it is made from"),
        ({"--out": "."}, "the export would replace student, which it is made from"),
        ({"--out": "teacher"}, "the export would replace {here}/teacher, which it is made from"),
        ({"--base-model": "no repository"}, "the base model must be the name of a repository of the Hub, as OWNER/"),
        ({"--push": "me"}, "the repository must be the name of a repository of the Hub, as OWNER/NAME, got 'me'"),
        ({"--teacher": "gone/away/x"}, "there is no folder gone/away/x"),
        ({"--to": "student"}, "student is neither a checkpoint nor the folder of a run that has one"),
    ],
)
def test_every_mistake_is_one_sentence(
    changes: dict[str, str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    make_student(tmp_path, "sdxl", "lora")
    (tmp_path / "a-file").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    options = {"--to": "diffusers-lora", "--out": "out"} | changes
    capsys.readouterr()
    assert main(["export", "student", *(word for pair in options.items() for word in pair)]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"rmd: {sentence.format(here=tmp_path)}") and told.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_student_whose_teacher_is_gone_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = make_student(tmp_path, "sdxl", "lora")
    (tmp_path / "teacher").rename(tmp_path / "moved")
    capsys.readouterr()
    assert main(["export", str(student), "--to", "fused", "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"rmd: there is no folder {tmp_path / 'teacher'}") and told.count("\n") == 1
    assert not (tmp_path / "out").exists()
    command = ["export", str(student), "--to", "fused", "--out", str(tmp_path / "out")]
    assert main([*command, "--teacher", str(tmp_path / "moved")]) == 0


def test_a_folder_that_may_not_be_written_to() -> None:
    with TemporaryDirectory() as temporary:  # not pytest's own folder, which other users may not enter
        parent = Path(temporary) / "locked"
        (parent / "out").mkdir(parents=True)
        Path(temporary).chmod(0o755)
        parent.chmod(0o555)
        with _as_nobody():
            for out in (parent / "new", parent / "new" / "deep", parent / "out"):
                with pytest.raises(RMDError, match=rf"^cannot write to {out}: you may not write there .*; choose"):
                    check_out(out)


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Run the block as another user, because root may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
