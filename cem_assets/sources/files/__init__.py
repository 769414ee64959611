"""Downloads: single files and whole lists, mirrors, digests, unpacking."""
