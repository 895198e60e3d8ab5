"""Sources of models: the hub, folders, checkpoint files, object stores, the web."""
