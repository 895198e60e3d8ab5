"""Everything between a protocol and the engine: loading, planning, running, counting."""
