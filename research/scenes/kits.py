"""The kits: each has the networks, data and settings that build the packaged weights of one world of still pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from research.scenes.dataset import renderer_key
from research.scenes.record import Data
from research.scenes.teacher import HIGH, LOW, Curriculum
from research.scenes.tokenizer import vista_vocabulary, vocabulary
from research.scenes.vae import VaeSettings
from rmd.core.plan import Stage
from rmd.worlds.picture import PictureWorld
from rmd.worlds.still.world import WORLD as SCENE_WORLD
from rmd.worlds.vistas.world import WORLD as VISTA_WORLD


@dataclass(frozen=True)
class Kit:
    """The settings of a world's packaged weights.

    Attributes:
        world: the world.
        stages: its low and its high resolution.
        words: the vocabulary of its captions.
        vae: settings of the VAE and its trainings, on `vae_data`.
        clean, poor: the teacher's pictures for the high and the low resolution.
        curriculum: settings of the teacher's training.
        refinement: settings of a further training of that teacher, if the packaged one had it.
        judge_data: pictures on which the judge is trained for `judge_iterations` steps, and `judge_test` unseen ones.
        judge_blurred: share of these that are shown to it as samples of half the size are.
        references: renders whose features are stored, and seed and number of the teacher's samples.
    """

    world: PictureWorld
    stages: tuple[Stage, Stage]
    words: Sequence[str]
    vae: VaeSettings
    vae_data: Data
    clean: Data
    poor: Data
    curriculum: Curriculum
    judge_data: tuple[Data, ...]
    judge_iterations: int
    judge_test: tuple[Data, ...]
    references: Data
    judge_blurred: float = 0.0
    refinement: Curriculum | None = None

    @property
    def renderer_key(self) -> str:
        """A hash of the source code of the world's renderer, for the names of checkpoints."""
        return renderer_key(self.clean.world)


SCENES = Kit(
    world=SCENE_WORLD,
    stages=(LOW, HIGH),
    words=vocabulary(),
    vae=VaeSettings(),
    vae_data=Data(8192, seed=1),
    clean=Data(40960, seed=11),
    poor=Data(16384, seed=12),
    curriculum=Curriculum(),
    judge_data=(Data(24576, seed=21, training=False),),
    judge_iterations=3000,
    judge_test=(Data(2048, seed=22, training=False),),
    references=Data(1024, seed=31, training=False),
)


def _vistas(count: int, seed: int, *, training: bool = True, poor: bool = False) -> Data:
    return Data(count, seed, training, world="vistas", side=128, poor=poor)


VISTAS = Kit(
    world=VISTA_WORLD,
    stages=(Stage(1, 64, 64), Stage(2, 128, 128)),
    words=vista_vocabulary(),
    vae=VaeSettings(widths=(16, 32, 48), iterations=1200, batch_size=32, crop=48, smooth=0.2, colours=1.0, muon=True),
    vae_data=_vistas(6144, 101),
    clean=_vistas(32768, 111),
    poor=_vistas(12288, 112, poor=True),
    curriculum=Curriculum(low_iterations=1500, high_iterations=10500, low_share=0.02, pairs=2, precision="bfloat16"),
    judge_data=(_vistas(24576, 121, training=False), _vistas(6144, 123, training=False, poor=True)),
    judge_iterations=5000,
    judge_test=(_vistas(2048, 122, training=False),),
    references=_vistas(1024, 131, training=False),
    judge_blurred=0.25,
    refinement=Curriculum(
        low_iterations=0, high_iterations=5000, low_share=0.02, objects=0.6, decay=0.7, precision="bfloat16"
    ),
)
KITS: dict[str, Kit] = {"scenes": SCENES, "vistas": VISTAS}
"""The kits by world."""
