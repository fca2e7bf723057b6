"""The values that the report and the talk name, computed from data."""
