"""KServe's two protocols, V1 and V2 (Open Inference)."""
