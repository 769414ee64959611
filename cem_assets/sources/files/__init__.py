"""Downloading files from their address or a mirror, checking their digests, and unpacking archives."""
