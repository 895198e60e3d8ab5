"""KServe's two protocols, V1 and V2, which is the Open Inference Protocol."""
