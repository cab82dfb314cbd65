"""The mathematics of stacked pytrees: leaves `[n, ...]`, one row per client."""
