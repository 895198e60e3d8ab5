"""The control plane: which requests run next, and when a request may not start at all.

Plain Python without tensors, so that it can be simulated. The data plane is an `Executor`.
"""
