"""Build time: turn a Stable Diffusion XL model into one BentoML model with a manifest."""
