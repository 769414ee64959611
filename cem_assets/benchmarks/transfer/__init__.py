"""Transfer benchmarks: features of images, profiles, nearest neighbours, and their scores."""
