"""The few named errors: whose fault it is."""
