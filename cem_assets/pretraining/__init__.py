"""Pretraining: batches of patches -> encoder weights. Pure torch; reading shards, runs and tracking are elsewhere."""
