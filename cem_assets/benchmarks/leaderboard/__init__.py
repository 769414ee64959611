"""All scores beside the published ones, and the gate that weights pass before they are promoted."""
