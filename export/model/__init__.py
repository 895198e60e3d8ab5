"""SDXL models: their layout, reading and checking sources, writing models, tracing networks."""
