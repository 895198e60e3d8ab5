"""A BentoML server for Stable Diffusion XL with compiled models and step-level batching."""

__version__ = "0.1.0"
