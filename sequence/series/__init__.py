"""Time series: models with mixers of choice, the five tasks they are measured on, a forecaster for own data."""
