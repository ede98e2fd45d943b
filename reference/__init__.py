"""The judge: the model in numpy, and in PyTorch where transformers is installed, apart from all that is judged."""
