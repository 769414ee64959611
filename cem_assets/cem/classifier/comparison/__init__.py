"""Comparing a new patch classifier with the one in use, on the patches that training holds out."""
