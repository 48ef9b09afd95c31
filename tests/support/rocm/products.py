"""The process in which `hipgpt doctor` tries the library for products, on simulated GPUs."""

from gpt.doctor.products import main

__all__ = ["main"]
