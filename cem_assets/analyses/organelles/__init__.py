"""Which feature maps find which organelle: correlation with masks."""
