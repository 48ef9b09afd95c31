"""Trackers: a run's log goes on to TensorBoard, Weights & Biases or trackio (`hipgpt train --track`).

Training writes metrics.jsonl and knows no tracker. A process of its own, the follower, looks every second for what is
new there, and hands it to the tracker. So the log is the queue between them. A tracker that is slow, hangs or fails
costs the run nothing, and nothing is lost if the run is killed: the follower still hands on what has been logged, and
the next follower begins with the lines of the log that the resumed run has kept.

- following.py: the training starts the follower, and ends it.
- __main__.py: the follower, as a process. log.py: the lines that are new in a log, and their values.
- interface.py: the contract between a follower and a tracker. Each tracker has a module.
"""

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}  # tracker → Python package
"""The trackers, each with the package that it needs. An extra of hipgpt has the tracker's name and brings it."""
