"""What runs by itself: maintenance, intake of the catalogue, alerts, the health of sources."""
