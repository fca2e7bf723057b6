"""Every figure, by subject, in one style."""
