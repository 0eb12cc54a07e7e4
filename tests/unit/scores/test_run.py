"""Scoring of folders: prompts and pictures that belong together, what is missing, and continuing where one stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from studies import picture
from torch import Tensor

from rmd.common.errors import RMDError
from rmd.common.workers import ALONE
from rmd.scores.journal import journal_name
from rmd.scores.metrics import ImageMetric, Place
from rmd.scores.result import Making, Preparation, Result, Table, read_result, write_result
from rmd.scores.run import find_pictures, score_pictures
from rmd.scores.suites import by_group

MAKING = Making(model="mine")


@dataclass
class Red:
    """Scores how red a picture is, plus a thousandth for every letter of its prompt."""

    preparation: Preparation
    batches: list[int] = field(default_factory=list)
    fail_at: int | None = None

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        if self.fail_at is not None and len(self.batches) == self.fail_at:
            raise RMDError("stopped")
        self.batches.append(len(images))
        values = [image.getpixel((0, 0))[0] + len(text) / 1000 for image, text in zip(images, prompts, strict=True)]
        return torch.tensor(values, dtype=torch.float32)


def red(**settings: int) -> tuple[ImageMetric, Red]:
    scorer = Red(Preparation(networks=(), settings=dict(settings)))
    return ImageMetric("red", "red", lambda place: scorer), scorer


def album(folder: Path, prompts: int = 3, each: int = 2) -> None:
    for prompt in range(prompts):
        for index in range(each):
            seed = prompt * each + index + 5
            picture(folder / f"{seed}.png", (10 * seed, 0, 0), prompt="p" * (prompt + 1), seed=seed)


def score(
    folder: Path, metric: ImageMetric, out: Path, prompts: str | None = None, **options: bool
) -> tuple[Result, Table]:
    found = score_pictures(
        find_pictures(str(folder), prompts), [metric], Place(), out, making=MAKING, prompt_set="mine", batch_size=2,
        **options,
    )  # fmt: skip
    assert found is not None
    return found


def test_pictures_know_their_prompts(tmp_path: Path) -> None:
    album(tmp_path / "a")
    found = find_pictures(str(tmp_path / "a"), None)
    assert found.prompts == ("p", "pp", "ppp") and (found.each, found.seed, found.missing) == (2, 5, 0)
    metric, scorer = red()
    result, table = score(tmp_path / "a", metric, tmp_path / "out")
    assert table.values["red"] == pytest.approx([50.001, 60.001, 70.002, 80.002, 90.003, 100.003], abs=1e-4)
    assert table.prompt.tolist() == [0, 0, 1, 1, 2, 2] and table.seed.tolist() == [5, 6, 7, 8, 9, 10]
    assert result.scores["red"].mean == pytest.approx(75.002, abs=1e-3) and result.scores["red"].count == 6
    protocol = result.protocol
    assert (protocol.width, protocol.height, protocol.image_format, protocol.dtype) == (16, 16, "png", "float32")
    assert protocol.prompts.count == 3 and result.versions["torch"]
    assert scorer.batches == [2, 2, 2]
    write_result(result, table, tmp_path / "out")
    assert read_result(tmp_path / "out")[0] == result


def test_a_file_of_prompts_says_what_is_expected(tmp_path: Path) -> None:
    album(tmp_path / "a", prompts=2)
    (tmp_path / "p.txt").write_text("pp\npppp\np\n", encoding="utf-8")
    metric, _ = red()
    with pytest.raises(RMDError, match=r"^2 of 6 pictures are missing: generate them, or give --allow-missing "):
        score(tmp_path / "a", metric, tmp_path / "out", str(tmp_path / "p.txt"))
    result, table = score(tmp_path / "a", metric, tmp_path / "out", str(tmp_path / "p.txt"), allow_missing=True)
    assert (result.scores["red"].count, result.scores["red"].missing) == (4, 2)
    assert table.prompt.tolist() == [0, 0, 2, 2]
    (tmp_path / "p.txt").write_text("pp\n", encoding="utf-8")
    with pytest.raises(RMDError, match=r"has pictures of a prompt that .*p\.txt lacks: 'p'$"):
        find_pictures(str(tmp_path / "a"), str(tmp_path / "p.txt"))


def test_pictures_of_other_programs_belong_to_lines(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "b" / f"{number}.png", (number, 0, 0))
    (tmp_path / "p.txt").write_text("a\na\nbb\n", encoding="utf-8")
    found = find_pictures(str(tmp_path / "b"), str(tmp_path / "p.txt"))
    assert found.prompts == ("a", "a", "bb") and (found.each, found.seed) == (1, 0)
    with pytest.raises(RMDError, match=r"^these pictures do not say what their prompts are: "):
        find_pictures(str(tmp_path / "b"), None)
    (tmp_path / "p.txt").write_text("a\n", encoding="utf-8")
    with pytest.raises(RMDError, match=r"p\.txt has 1 prompts for 3 pictures: it needs one for each$"):
        find_pictures(str(tmp_path / "b"), str(tmp_path / "p.txt"))


def test_an_interrupted_scoring_continues_and_an_exchanged_picture_is_scored_again(tmp_path: Path) -> None:
    album(tmp_path / "a")
    metric, scorer = red()
    scorer.fail_at = 2
    with pytest.raises(RMDError, match=r"^stopped$"):
        score(tmp_path / "a", metric, tmp_path / "out")
    journal = tmp_path / "out" / journal_name(ALONE)
    assert len(journal.read_text().splitlines()) == 4
    journal.write_text(journal.read_text() + '["cut off', encoding="utf-8")
    again, second = red()
    _, table = score(tmp_path / "a", again, tmp_path / "out")
    assert second.batches == [2] and table.values["red"][-1] == pytest.approx(100.003, abs=1e-4)
    picture(tmp_path / "a" / "5.png", (77, 0, 0), prompt="p", seed=5)
    third, scored = red()
    _, table = score(tmp_path / "a", third, tmp_path / "out")
    assert scored.batches == [1] and table.values["red"][0] == pytest.approx(77.001, abs=1e-4)
    other, all_again = red(side=3)
    score(tmp_path / "a", other, tmp_path / "out")
    assert all_again.batches == [2, 2, 2]
    assert all(len(json.loads(line)) == 2 for line in journal.read_text().splitlines()[5:])


def test_pictures_of_one_result_are_alike_whole_and_finite(tmp_path: Path) -> None:
    album(tmp_path / "a")
    picture(tmp_path / "a" / "5.png", (50, 0, 0), prompt="p", seed=5, side=20)
    metric, scorer = red()
    with pytest.raises(RMDError, match=r"^pictures of one result have one size and format: .* 20 x 20 pixels in PNG"):
        score(tmp_path / "a", metric, tmp_path / "out")
    content = (tmp_path / "a" / "6.png").read_bytes()
    (tmp_path / "a" / "5.png").write_bytes(content[:-40])
    with pytest.raises(RMDError, match=r"5\.png"):
        score(tmp_path / "a", metric, tmp_path / "out")
    assert not (tmp_path / "out").exists() and scorer.batches == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(RMDError, match=r"^there are no samples \(\.png, \.jpg, \.jpeg, \.webp\) in .*empty: "):
        find_pictures(str(tmp_path / "empty"), None)


def test_pictures_are_scored_as_people_see_them(tmp_path: Path) -> None:
    """Rotated as EXIF says, transparent on white, grey in three channels."""
    seen: list[Image.Image] = []

    class Keep(Red):
        def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
            seen.extend(images)
            return torch.zeros(len(images))

    folder = tmp_path / "a"
    folder.mkdir()
    upright = Image.new("RGB", (24, 16), (9, 9, 9))
    upright.paste((200, 100, 0), (0, 0, 12, 16))
    exif = Image.Exif()
    exif[274] = 6  # shown turned to the right, so stored turned to the left
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "0.png", exif=exif)
    clear = upright.convert("RGBA")
    clear.putalpha(0)
    clear.save(folder / "1.png")
    upright.convert("L").save(folder / "2.png")
    (tmp_path / "p.txt").write_text("a\nb\nc\n", encoding="utf-8")
    metric = ImageMetric("red", "red", lambda place: Keep(Preparation(networks=())))
    result, _ = score(folder, metric, tmp_path / "out", str(tmp_path / "p.txt"))
    assert (result.protocol.width, result.protocol.height) == (24, 16)
    assert seen[0].tobytes() == upright.tobytes()
    assert seen[1].getcolors() == [(24 * 16, (255, 255, 255))]
    assert seen[2].tobytes() == upright.convert("L").convert("RGB").tobytes()


@dataclass
class Apart(Red):
    """Scores how far a picture's red is from that of the other pictures, on average."""

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        assert len(images) > 1 and len(set(prompts)) == 1
        self.batches.append(len(images))
        reds = torch.tensor([float(image.getpixel((0, 0))[0]) for image in images])
        return (reds[:, None] - reds).abs().sum(-1) / (len(images) - 1)


def apart() -> tuple[ImageMetric, Apart]:
    scorer = Apart(Preparation(networks=()))
    return ImageMetric("apart", "distance", lambda place: scorer, together=True), scorer


def test_pictures_of_a_prompt_are_scored_together(tmp_path: Path) -> None:
    """The mean is that of all pairs, of which every prompt has as many; a picture alone has no value."""
    album(tmp_path / "a", prompts=2, each=3)
    metric, scorer = apart()
    result, table = score(tmp_path / "a", metric, tmp_path / "out")
    assert scorer.batches == [3, 3]  # not two, which is the size of a batch
    assert table.values["apart"].tolist() == [15, 10, 15, 15, 10, 15]
    assert result.scores["apart"].mean == pytest.approx((10 + 10 + 20) / 3)
    (tmp_path / "a" / "5.png").unlink()
    for name in ("8.png", "9.png"):
        (tmp_path / "a" / name).unlink()
    again, second = apart()
    (tmp_path / "p.txt").write_text("p\npp\n", encoding="utf-8")
    result, table = score(tmp_path / "a", again, tmp_path / "out", str(tmp_path / "p.txt"), allow_missing=True)
    assert second.batches == [2]  # the others have changed, so the values have
    np.testing.assert_array_equal(table.values["apart"], [10, 10, np.nan])
    assert (result.scores["apart"].count, result.scores["apart"].missing) == (2, 2)
    _, third = apart()
    score(tmp_path / "a", again, tmp_path / "out", str(tmp_path / "p.txt"), allow_missing=True)
    assert third.batches == [] and second.batches == [2]


def test_a_comparison_of_seeds_needs_two(tmp_path: Path) -> None:
    album(tmp_path / "a", each=1)
    metric, scorer = apart()
    with pytest.raises(RMDError) as error:
        score(tmp_path / "a", metric, tmp_path / "out")
    assert str(error.value) == (
        "distance compares pictures of one prompt with different seeds, and there is one picture of each prompt: "
        "generate more with rmd generate --count 4"
    )
    assert not (tmp_path / "out").exists() and scorer.batches == []


def write_styles(folder: Path, **more: list[str]) -> None:
    """Write prompts in HPDv2's layout, of which "pp" occurs in two styles."""
    folder.mkdir()
    lists = {"anime": ["p", "pp"], "concept-art": ["pp"], "paintings": ["ppp"], "photo": ["pppp"], **more}
    for style, prompts in lists.items():
        (folder / f"{style}.json").write_text(json.dumps(prompts), encoding="utf-8")


def test_pictures_that_know_their_prompts_have_the_groups_of_these(tmp_path: Path) -> None:
    album(tmp_path / "a", prompts=4, each=2)
    write_styles(tmp_path / "styles")
    metric, scorer = red()
    result, table = score(tmp_path / "a", metric, tmp_path / "out", str(tmp_path / "styles"))
    assert result.protocol.prompts.groups == {"anime": 2, "concept-art": 1, "paintings": 1, "photo": 1}
    assert sum(scorer.batches) == 8 and table.prompt.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    found = result.groups["red"]
    means = {name: each.mean for name, each in found.groups.items()}
    assert means == pytest.approx({"anime": 65.0015, "concept-art": 75.002, "paintings": 95.003, "photo": 115.004})
    assert found.average.mean == pytest.approx(sum(means.values()) / 4) and result.scores["red"].count == 10
    assert found == by_group(result, table, "red")
    write_result(result, table, tmp_path / "out")
    assert read_result(tmp_path / "out")[0] == result


def test_pictures_in_folders_of_styles_belong_to_the_prompts_of_their_numbers(tmp_path: Path) -> None:
    write_styles(tmp_path / "styles")
    for style, numbers in (("anime", (0, 1)), ("concept-art", (0,)), ("paintings", (0,)), ("photo", (0,))):
        for number in numbers:
            picture(tmp_path / "a" / style / f"{number:05d}.jpg", (10 * number, 0, 0))
    found = find_pictures(str(tmp_path / "a"), str(tmp_path / "styles"))
    assert found.prompts == ("p", "pp", "pp", "ppp", "pppp") and found.missing == 0
    assert [its[0][1].parent.name for its in found.files] == ["anime", "anime", "concept-art", "paintings", "photo"]
    (tmp_path / "a" / "anime" / "00001.jpg").unlink()
    with pytest.raises(RMDError, match=r"^1 of 5 pictures are missing: "):
        score(tmp_path / "a", red()[0], tmp_path / "out", str(tmp_path / "styles"))


def test_workers_share_prompts_and_the_last_one_has_the_result(tmp_path: Path) -> None:
    album(tmp_path / "a", prompts=3, each=2)
    expected = find_pictures(str(tmp_path / "a"), None)

    def share(worker: tuple[int, int]) -> tuple[list[int], tuple[Result, Table] | None]:
        (metric, scorer), (pairs, other) = red(), apart()
        found = score_pictures(
            expected, [metric, pairs], Place(), tmp_path / "out", making=MAKING, prompt_set="mine", batch_size=3,
            worker=worker,
        )  # fmt: skip
        return scorer.batches + other.batches, found

    first, nothing = share((0, 2))
    assert (first, nothing) == ([3, 1, 2, 2], None)  # prompts 0 and 2: four pictures one by one, and two pairs
    second, found = share((1, 2))
    assert second == [2, 2] and found is not None
    again, same = share((0, 1))
    assert again == [] and same is not None and same[0] == found[0]
    assert found[1].values["red"].tolist() == pytest.approx([50.001, 60.001, 70.002, 80.002, 90.003, 100.003])
    assert found[1].values["apart"].tolist() == [10.0] * 6
