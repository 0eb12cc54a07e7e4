"""RMD: cross-resolution distribution matching distillation for few-step diffusion."""

__version__ = "0.1.0"
