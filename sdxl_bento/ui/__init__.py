"""The pages: Gradio's at `/ui` where it is installed, a plain one at `/`, one with the API.

All work offline, from this server alone. Nothing here imports gradio but `layout`, `events` and
`theme`, and these are imported late: a service without it never asks for it.
"""

from sdxl_bento.ui.pages import api_page, front_page

__all__ = ["api_page", "front_page"]
