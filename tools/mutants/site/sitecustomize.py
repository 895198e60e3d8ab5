"""Put on PYTHONPATH by `tools.mutants`, so that processes which tests start are traced too."""

from tools.mutants.tracing import start_if_asked

start_if_asked()
