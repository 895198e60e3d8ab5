"""What an SDXL model is made of: reading it, checking it, writing it."""
