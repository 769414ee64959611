"""How a network sees the classes of a CytoImageNet release: features, maps, and the asset `cytoimagenet/class_maps`."""
