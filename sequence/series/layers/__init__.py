"""Parts of time-series models: embeddings, normalisations, decompositions, heads."""
