"""V2, the Open Inference Protocol."""
