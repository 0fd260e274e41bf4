"""What a forecaster for own data is made of: tables, windows, quantiles, files, pictures, scores."""
