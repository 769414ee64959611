"""CytoImageNet: from the metadata of many microscopy sources to weak labels and crops (Hua et al., arXiv:2111.11646)."""
