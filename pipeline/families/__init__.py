"""The published families of models, each with how it looks at a clip."""
