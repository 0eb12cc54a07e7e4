"""What the report's page says of its pictures and measures, in plain words."""

from __future__ import annotations

SAMPLES_NOTE = (
    "Each line is one prompt, each column one sampler; the pictures are enlarged without smoothing. "
    "Below: the numbers, the training, and how all of it was made."
)

JUDGE_NOTE = (
    "Attributes and distances are a small classifier’s, the judge, which was trained on clean renders. They are "
    "not CLIP, KID or FID scores and compare only with each other."
)

PANEL_ROWS = ("student", "noised", "teacher reads", "fake score reads", "difference ×4")
"""The rows of a training panel, from top to bottom."""

PANELS_NOTE = (
    "The student’s samples of one iteration: as they are, noised, and as teacher and fake score read them "
    "in the noise. The student learns from the difference; grey is none."
)

ATTRIBUTES_NOTE = (
    "Share of samples with that attribute right, among those whose caption names it; a and b are the first "
    "and the second object."
)

_JUDGE = (
    "The judge is a small classifier that was trained on clean renders only and knows no generator. It does "
    "what larger projects use CLIP for, but it is not CLIP."
)

MEASURE_NOTES: tuple[tuple[str, str], ...] = (
    (
        "Network evaluations",
        "Per image. Guidance evaluates the network twice a step, so it counts two. An evaluation at a lower "
        "resolution counts one, although it takes less time.",
    ),
    (
        "s/image, speed-up",
        "Seconds per image on this machine: of the denoiser alone, and end to end, with reading the caption "
        "and decoding. The speed-up is over the teacher’s row, and of the denoiser alone.",
    ),
    (
        "All attributes right",
        f"Share of samples in which the judge finds everything that the caption asks for. {_JUDGE} The "
        "interval is Wilson’s.",
    ),
    (
        "Kernel distance",
        "How far the samples, taken together, are from rendered scenes: the unbiased squared MMD of the "
        "judge’s features with a cubic kernel, times 1000. The formula is that of KID but the features are "
        "not, so the numbers compare only with each other. 0 means that no difference was found; chance can "
        "put it a little below. The interval is the jackknife’s.",
    ),
    (
        "Kernel distance to teacher",
        "The same to the teacher’s own samples, which the student was made to match. A sampler can be close "
        "to the renders and further from its teacher.",
    ),
    (
        "Fréchet distance",
        "To rendered scenes, on the same features: the formula of FID, but not FID. It depends on the number "
        "of samples.",
    ),
    (
        "Fine detail",
        "Energy of what half the resolution cannot hold, over that of rendered scenes. 1 is as sharp as they "
        "are, less is blurred, more is noisy or too sharp.",
    ),
    (
        "Diversity",
        "Mean distance between the judge’s features of two samples of one prompt. Compare it with the "
        "teacher’s: much less means that the student has fewer pictures to offer.",
    ),
)

MOTION_NOTES: tuple[tuple[str, str], ...] = (
    (
        "Clips",
        "All attributes right counts frames, and the distances, detail and diversity above are of frames.",
    ),
    (
        "Motion right, speed right",
        "The judge finds the object in every frame; from its track is read how far it travels, hops, turns and grows. "
        "Motion is right when it is of the asked kind and direction, and speed when it is as fast as well. The "
        "thresholds are exact: they are right for every path that the captions describe.",
    ),
    (
        "Moves",
        "How much of the asked motion there is, over what the caption means: 1 is as much, 0 stands still. Few-step "
        "video samplers tend to move less than their teachers.",
    ),
    (
        "Flicker",
        "Mean change from frame to frame outside the object, where nothing should change, in percent of the range.",
    ),
    (
        "Kernel distance of changes",
        "As the kernel distance, of how much the features change from frame to frame. It is no FVD.",
    ),
)
