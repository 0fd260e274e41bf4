"""Time series: models with mixers of choice, the five tasks they are measured on, and a forecaster for one's own data."""
