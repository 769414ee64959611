"""What runs without anybody asking for it: maintenance, fetching of catalogue rows, alerts, records of sources in trouble."""
