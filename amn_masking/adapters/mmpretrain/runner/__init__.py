"""Around the training step: hooks, resuming, clipping, data and processes of mmengine's Runner."""
