"""The inbox, where people put datasets: reading it, sorting files into volumes, local copies, reports of what was refused."""
