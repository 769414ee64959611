"""Maps of datasets and distances between them, as an encoder sees them."""
