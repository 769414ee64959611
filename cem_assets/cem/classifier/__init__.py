"""The patch classifier: its network, training, comparison, people's answers, and where it lies in the store."""
