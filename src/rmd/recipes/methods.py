"""The distillation methods and the settings of each (Sec. 3.2 of the paper).

`METHODS` is the registry of methods. Another package adds one by an entry point of the group `rmd.methods`: a class
with the interface of `rmd.methods.Method`, whose attribute `Config` is a subclass of `MethodConfig` with the options of
that method. The settings of RMD's own methods are here and not beside their code, so that reading a recipe does not
import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Protocol, TypeAlias

from pydantic import Field, SerializeAsAny, ValidationError, WrapValidator

from rmd.common.errors import RMDError, shown
from rmd.common.plugins import Registry
from rmd.common.typed import Strict
from rmd.recipes.groups import MAX_STAGES, Few, Rate, Share, Weight, Whole

Scale = Annotated[float, Field(ge=0, le=1000)]

DEFAULT = "rmd"
"""The method of a recipe that names none."""


class MethodConfig(Strict):
    """The settings that every method has. A method of another package adds its own options in a subclass."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    """The method: `rmd`, `tdm`, `dmd2`, or one that an installed package provides."""
    guidance: Scale
    """Scale of the teacher's classifier-free guidance, uncond + guidance (cond - uncond); 1 turns it off."""
    fake_updates: Annotated[int, Field(gt=0, le=100)] = 1
    """Updates of the fake score for each update of the student."""
    order: Literal["student_first", "fake_first"] = "student_first"
    """Network that an iteration updates first. `student_first`: the student, and then the fake score on the same
    samples (Alg. 1). `fake_first`: the fake score, on samples of a step of its own draw, and then the student, as in
    the authors' code."""

    @property
    def needs_images(self) -> bool:
        """True if the method needs real images, `data.images`."""
        return False

    @property
    def teacher_branches(self) -> int:
        """The teacher's network evaluations per sample in an update of the student."""
        return 1 if self.guidance == 1.0 else 2


class MatchingConfig(MethodConfig):
    """The settings of methods that match distributions by a teacher's and a fake score (Eq. 7 to 9)."""

    metric: Literal["pseudo_huber", "pseudo_huber_elements", "l2"] = "pseudo_huber"
    """Metric of the student's loss. `pseudo_huber`: of each sample's norm, as in the paper (App. B).
    `pseudo_huber_elements`: of each value, as in the authors' code. `l2`: half the mean square."""
    weight: Literal["sample", "none"] = "sample"
    """`sample`: divide the student's loss by mean |y - f_real| of each sample. `none`: no weight."""
    weight_floor: Rate = 1e-5
    """Smallest mean |y - f_real| by which `weight` divides."""
    tau: Literal["segment", "stage", "above", "all"] = "segment"
    """Range from which the scores' teacher times are drawn. `segment`: the trained step's own segment. `stage`: from
    the segment's lower end up to the last step of the stage before. `above`: from there up to 1000. `all`: 0 to
    1000."""
    tau_offset: Annotated[tuple[Share, ...], Field(strict=False, max_length=MAX_STAGES)] = ()
    """Share of the range that is left out at its lower end, for each stage; the last number holds for further ones."""
    tau_shift: Rate = 1.0
    """Flow shift of this range at low-resolution steps. Above 1 the scores see more noise: 2 at half the side shows a
    score at the last resolution what it would see at the step's own; 0.5 is the reverse."""
    tau_spacing: Literal["time", "grid"] = "time"
    """Scale on which these times are uniform: the teacher's time, or the scheduler's before the flow shift."""
    fake_weight: Literal["snr", "snr_plus_one", "noise"] = "snr"
    """Weight of the fake score's error (Eq. 9). `snr`: min(SNR, snr_cap). `snr_plus_one`: that plus 1. `noise`:
    uncapped SNR, i.e. MSE on the predicted noise."""
    snr_cap: Rate = 5.0
    """Upper limit of the SNR in `fake_weight`."""


class CascadeConfig(MatchingConfig):
    """The settings of methods that train cascades of several stages."""

    tau_noise: Literal["mixed", "fresh", "trajectory", "trajectory_sample"] = "mixed"
    """Noise that takes the student's sample to the time tau. `mixed`: predicted and fresh noise as in a crossing
    (Eq. 10). `fresh`: fresh noise only. `trajectory`: the sampler's next state, diffused up to tau; the fake score
    learns its exact score. `trajectory_sample`: the next state with predicted noise of weight `crossing.eta` at every
    step, diffused up to tau; the fake score predicts the sample (the authors' code)."""
    stage_weights: Annotated[tuple[Weight, ...], Field(strict=False, max_length=MAX_STAGES)] = ()
    """Weight of the student's loss at each stage (Eq. 6); empty: 1 each."""
    stage_guidance: Annotated[tuple[Scale, ...], Field(strict=False, max_length=MAX_STAGES)] = ()
    """Scale of the teacher's guidance in the training of each stage; empty: `guidance` in all. At high noise, guided
    predictions have too much contrast, which a low stage hands on."""
    guidance_tau: Literal["same", "below"] = "same"
    """Time at which the teacher's guidance is read. `same`: tau, with both branches. `below`: a cleaner time of its
    own, below the step's, while the rest of the score is read without guidance at tau; a third branch."""
    warmup_steps: Whole = 0
    """Iterations at the start that train the first stage only (Sec. 3.4)."""
    stage_draws: Annotated[tuple[Few, ...], Field(strict=False, max_length=MAX_STAGES)] = ()
    """Number of times that each stage is drawn in a round of iterations, such as [1, 2]; empty: each once."""
    matching: Literal["teacher", "own", "mixed"] = "teacher"
    """Resolution at which the scores read the samples of low-resolution steps. `teacher`: the last one, the paper's
    cross-resolution matching. `own`: the step's own. `mixed`: either, by iteration."""
    own_share: Share = 0.5
    """With `matching` mixed: share of the iterations that match at the step's own resolution."""

    @property
    def teacher_branches(self) -> int:
        """The teacher's network evaluations per sample in an update of the student."""
        return 3 if self.guidance != 1.0 and self.guidance_tau == "below" else super().teacher_branches


class RMDConfig(CascadeConfig):
    """Settings of cross-resolution distribution matching, the paper's method."""

    name: Literal["rmd"] = "rmd"


class TDMConfig(MatchingConfig):
    """Settings of trajectory distribution matching (Luo et al. 2025)."""

    name: Literal["tdm"] = "tdm"


class DMD2Config(MatchingConfig):
    """Settings of DMD2 (Yin et al. 2024)."""

    name: Literal["dmd2"] = "dmd2"
    adversarial: Weight = 0.0
    """Weight of the adversarial loss in the student's loss, which needs `data.images`; 0 turns it off."""
    adversarial_fake: Rate = 1.0
    """Weight of the adversarial loss in the fake score's loss."""

    @property
    def needs_images(self) -> bool:
        """True if the adversarial loss is on."""
        return self.adversarial > 0


class MethodClass(Protocol):
    """The part of a method's class that recipes know; `rmd.methods.Method` is the whole interface."""

    Config: type[MethodConfig]

    def __call__(self, backbone: Any, roles: Any, plan: Any, config: Any, *, seed: int) -> Any: ...


METHODS: Registry[MethodClass] = Registry(
    "rmd.methods",
    "method",
    {
        "rmd": "rmd.methods.rmd:RMD",
        "tdm": "rmd.methods.tdm:TDM",
        "dmd2": "rmd.methods.dmd2:DMD2",
    },
)
"""All methods by name."""

_OWN: Mapping[str, type[MethodConfig]] = {"rmd": RMDConfig, "tdm": TDMConfig, "dmd2": DMD2Config}


def method_config(name: object) -> type[MethodConfig] | None:
    """Return the class of a method's settings, or None if there is no method of this name.

    Raises:
        RMDError: another package provides the method, but it cannot be imported or has no `Config`.
    """
    if not isinstance(name, str):
        return None
    if name in _OWN:
        return _OWN[name]
    if name not in METHODS.names():
        return None
    config = getattr(METHODS.get(name), "Config", None)
    if not (isinstance(config, type) and issubclass(config, MethodConfig)):
        raise RMDError(
            f"the method {shown(name)} has no settings: its class needs an attribute Config, a subclass of "
            "rmd.recipes.methods.MethodConfig; update or uninstall the package that provides it"
        )
    return config


def method_keys(name: object) -> frozenset[str]:
    """Return the keys of a method's settings; none for a name that no method has."""
    config = method_config(name)
    return frozenset() if config is None else frozenset(config.model_fields)


def _validate(value: object, handler: Callable[[object], Any]) -> MethodConfig:
    """Validate settings by the model of the method that they name."""
    if isinstance(value, MethodConfig):
        return value
    name = value.get("name", DEFAULT) if isinstance(value, Mapping) else DEFAULT
    config = method_config(name)
    if config is None:
        *names, last = (repr(known) for known in METHODS.names())
        expected = {"expected": f"{', '.join(names)} or {last}"}
        raise ValidationError.from_exception_data(
            "method", [{"type": "literal_error", "loc": ("name",), "input": name, "ctx": expected}]
        )
    return config.model_validate(value)


AnyMethodConfig: TypeAlias = Annotated[
    SerializeAsAny[RMDConfig | TDMConfig | DMD2Config | MethodConfig], WrapValidator(_validate)
]
"""The settings of any method, told apart by `name`."""
