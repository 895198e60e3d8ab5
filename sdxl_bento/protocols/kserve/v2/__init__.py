"""KServe's V2 protocol, the Open Inference Protocol."""
