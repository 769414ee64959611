"""What every score shares: its inputs, its files in the store, its pictures, its checks."""
