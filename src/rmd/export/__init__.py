"""Students on disk: stock diffusers weights with the plan beside them."""
