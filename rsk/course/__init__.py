"""What the notebooks call, and running them through papermill."""
