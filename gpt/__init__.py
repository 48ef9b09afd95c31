"""hipgpt: train GPT-2 style language models from a text file, without PyTorch."""

__version__ = "0.1.0"
