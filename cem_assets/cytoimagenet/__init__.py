"""CytoImageNet: metadata of many microscopy sources to weak labels to crops (Hua et al., arXiv:2111.11646)."""
