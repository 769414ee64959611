"""What must not be trained on: fingerprints of the benchmarks' images, and the guard that compares images with them."""
