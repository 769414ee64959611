"""MoCoV2, SwAV and supervised training, and what they are made of."""
