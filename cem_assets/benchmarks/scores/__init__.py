"""What all scores have in common: their inputs, their files in the store, their pictures and their check."""
