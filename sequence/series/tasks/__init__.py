"""Forecasting, imputation, classification and anomalies as tasks."""
