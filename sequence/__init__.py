"""Long-sequence and time-series models built from matmix mixers, and their tasks."""
