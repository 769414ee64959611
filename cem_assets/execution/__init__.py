"""How work is carried out: engines for parallel work, what every stage shares, interruptions."""
