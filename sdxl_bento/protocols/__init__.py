"""Adapters between the wire formats of clients and `drawing`: they translate and decide nothing."""
