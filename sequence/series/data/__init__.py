"""Files of time series as people have them, and windows of them."""
