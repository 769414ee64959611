"""Images and labels of benchmarks, prepared once."""
