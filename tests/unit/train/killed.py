"""The run of 30 iterations that test_loop.py kills; its second half is slow, so that it never ends before the kill.

killed.py RECIPE FOLDER
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from helpers import LinearBackbone

from rmd.recipes.schema import load_recipe
from rmd.train.loop import Trainer

if __name__ == "__main__":
    backbone = LinearBackbone(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    trainer = Trainer(load_recipe(sys.argv[1]), backbone, Path(sys.argv[2]))
    trainer.on_iteration = lambda done, values: time.sleep(0.01 if done < 15 else 0.3)
    trainer.train()
