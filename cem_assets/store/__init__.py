"""The store: keys and bytes, manifests, commits."""
