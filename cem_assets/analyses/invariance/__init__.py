"""What an encoder does not answer to: rates of invariance under transformations of its input."""
