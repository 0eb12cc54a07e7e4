"""Explanations on the report's page that do not belong to a metric."""

from __future__ import annotations

SAMPLES_NOTE = (
    "Each line is one prompt, each column one sampler; the pictures are enlarged without smoothing. "
    "Below: the numbers, the training, and how everything was made."
)

JUDGE_NOTE = (
    "Attributes and distances come from a small classifier, the judge, which was trained on clean renders. They are "
    "not CLIP, KID or FID scores and compare only with each other."
)

PANEL_ROWS = ("student", "noised", "teacher reads", "fake score reads", "difference ×4")
"""The rows of a training panel, from top to bottom."""

PANELS_NOTE = (
    "The student’s samples of one iteration: as they are, with noise, and as the teacher and the fake score predict "
    "them from the noise. The student learns from the difference, where grey means none."
)

ATTRIBUTES_NOTE = (
    "Share of samples with that attribute right, among those whose caption names it; a and b are the first "
    "and the second object."
)

COST_NOTES: tuple[tuple[str, str], ...] = (
    (
        "Network evaluations",
        "Per sample. Guidance evaluates the network twice per step, so it counts two. An evaluation at a lower "
        "resolution counts one, although it takes less time.",
    ),
    (
        "s/image or s/clip, speed-up",
        "Seconds per sample on this machine: in the denoiser alone, and end to end, with reading the caption and "
        "decoding. The speed-up is relative to the teacher’s row, and that of the denoiser alone.",
    ),
)
