"""The pages: Gradio's at `/ui` where it is installed, a plain one at `/`, one with the API.

All of them work offline, from this server alone. `blocks` puts Gradio's page together. It, and what
only it imports (`layout`, `elements`, `updates`, `events`, `theme`), are the only modules that
import gradio, and `page` imports `blocks` when somebody opens the page. So a service works without
gradio.
"""

from sdxl_bento.ui.pages import api_page, front_page

__all__ = ["api_page", "front_page"]
