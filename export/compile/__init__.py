"""Compilation of a written model for targets: `registry` describes them, `targets` holds them."""
