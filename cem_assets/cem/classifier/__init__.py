"""The patch classifier: network, training, comparison, the labels that people give, and its place in the store."""
