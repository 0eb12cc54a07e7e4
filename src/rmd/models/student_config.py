"""`rmd_config.json`, which lies in every student's folder: the plan, and where the student comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from pydantic import Field, PrivateAttr

from rmd.common.errors import RMDError
from rmd.common.files import read_model
from rmd.common.typed import Strict
from rmd.core.plan import StepPlan
from rmd.models.adapter import LORA_NAME
from rmd.models.base import Conditioning
from rmd.models.folder import INDEX
from rmd.models.hub import hub_errors
from rmd.models.registry import family_class

CONFIG_NAME = "rmd_config.json"
Text = Annotated[str, Field(min_length=1)]


class StudentConfig(Strict):
    """The content of `rmd_config.json`: the plan that a student was distilled for, and where it comes from."""

    version: Literal[1] = 1
    method: Text
    mode: Literal["lora", "full"]
    """`lora`: an adapter for the teacher's pipeline; `full`: a whole pipeline."""
    teacher: Text | None
    """A folder, a repository on the Hub or a packaged teacher; None if the student was exported without a name."""
    family: Text
    recipe: str
    recipe_hash: str
    guidance: Annotated[float, Field(ge=0)]
    """Guidance scale of the teacher, which is distilled into the student."""
    prompts: str
    conditioning: Conditioning
    plan: StepPlan
    _source: str = PrivateAttr("")

    @property
    def source(self) -> str:
        """Folder or repository that the config was read from; empty if it was created here."""
        return self._source

    @property
    def runs_alone(self) -> bool:
        """Return whether `rmd.models.standalone` can run the student."""
        return family_class(self.family).runs_alone and not self.conditioning.pos_rescale

    @property
    def values(self) -> dict[str, Any]:
        """Return the file's content as JSON values."""
        return self.model_dump(mode="json")


def write_config(config: StudentConfig, folder: Path) -> None:
    """Write `rmd_config.json` into a folder that is being filled."""
    (folder / CONFIG_NAME).write_text(config.model_dump_json(indent=1) + "\n", encoding="utf-8")


def holds_student(source: str | Path) -> bool:
    """Return whether a folder or a repository on the Hub holds a student, and not only a diffusers pipeline.

    Raises:
        RMDError: it holds neither, or cannot be reached.
    """
    if not str(source):
        raise RMDError("the name of the model is empty: give a folder, or a repository of the Hub")
    folder = Path(source)
    if folder.exists():
        if not (folder / CONFIG_NAME).is_file() and not (folder / INDEX).is_file():
            raise RMDError(
                f"{source} holds neither a student nor a diffusers pipeline: it has no {CONFIG_NAME} and no {INDEX}"
            )
        return (folder / CONFIG_NAME).is_file()
    with hub_errors(source, "the student"):
        try:
            hf_hub_download(str(source), CONFIG_NAME)
        except RemoteEntryNotFoundError:
            return False
        except LocalEntryNotFoundError:
            if not isinstance(try_to_load_from_cache(str(source), INDEX), str):
                raise
            return False
    return True


def read_student(source: str | Path) -> StudentConfig:
    """Read `rmd_config.json` of a folder or a repository on the Hub.

    Raises:
        RMDError: there is none, RMD did not write it, or the files beside it belong to another kind of student.
    """
    folder = Path(source)
    if not folder.exists():
        with hub_errors(source, "the student"):
            folder = Path(hf_hub_download(str(source), CONFIG_NAME)).parent
    if not (folder / CONFIG_NAME).is_file():
        raise RMDError(f"{source} holds no student: it has no {CONFIG_NAME}")
    config = read_model(folder / CONFIG_NAME, StudentConfig)
    config._source = str(source)
    family_class(config.family)
    needed = INDEX if config.mode == "full" else LORA_NAME
    if Path(source).exists() and not (folder / needed).is_file():
        raise RMDError(f"the {CONFIG_NAME} of {source} describes a {config.mode} student, but there is no {needed}")
    return config
