"""Figures of Gradio's page that both the mounting and the app it mounts have to know."""

from __future__ import annotations

PATH = "/ui"
CACHE_S = 3600  # seconds that an uploaded picture is kept
