"""Teach Stable Diffusion a new concept: Custom Diffusion (arXiv 2212.04488)."""

__version__ = "0.1.0"
