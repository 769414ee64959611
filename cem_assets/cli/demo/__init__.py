"""`cem-assets demo`: from seeded phantoms to releases, weights and their scores."""
