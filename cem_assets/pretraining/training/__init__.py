"""The training loop, its checkpoints, its processes, and the stage around it."""
