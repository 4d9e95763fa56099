"""Training: batches, objectives, one loop, several processes, checkpoints."""
