"""The targets that a model can be compiled for."""
