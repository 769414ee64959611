"""Where an encoder looks: occlusion maps."""
