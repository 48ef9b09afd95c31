"""What hipgpt needs of the machine that it runs on. Nothing in here knows what a model is.

files.py writes whole files or none, lock.py keeps two writers apart, reading.py and tensors.py read JSON and
safetensors files that may be damaged, shipped.py finds the files that come with hipgpt. console.py is the terminal,
interrupts.py the signals, threads.py the CPU's cores, limits.py the free memory and disk space.
"""
