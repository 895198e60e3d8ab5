"""Where a model comes from: the hub, a folder, a checkpoint file, an object store, the web."""
