"""What several packages need of a picture: difference hashes, Hamming search, intensity policies, binning, galleries.

Pure numpy, numba and Pillow. Nothing here knows of files, stores or Dagster.
"""
