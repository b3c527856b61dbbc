"""A `Recorder` inside the training loops and trackers that people have: Lightning, Hugging Face, TensorBoard, W&B.

Each file imports its library, and nothing imports the files before they are asked for. May import: training, results,
ranks and everything below.
"""
