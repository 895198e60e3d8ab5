"""Changes to ONNX graphs: adapter slots, low bits, splits."""
