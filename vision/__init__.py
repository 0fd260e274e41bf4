"""Image models built from matmix mixers."""
