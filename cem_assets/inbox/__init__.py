"""The landing zone: datasets and their descriptions, what may be taken in, private copies, quarantine."""
