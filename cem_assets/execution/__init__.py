"""How work is done: engines for parallel work, what every stage shares, and orderly interruption."""
