"""Adapters from the wire to `generation.Generator`: they translate, and hold no logic."""
