"""Is what was written still the model? Parity of parts and of whole pictures."""
