"""The pretraining methods MoCo v2, SwAV and supervised training, and their parts."""
