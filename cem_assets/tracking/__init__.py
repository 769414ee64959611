"""MLflow: runs, the outbox that waits for it, the one client."""
