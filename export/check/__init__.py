"""Verification of exported models: the eager copy, compiled parts, and whole pictures."""
