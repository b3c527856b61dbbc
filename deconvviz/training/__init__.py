"""`train`, exactly resumable, and the `Recorder` of what units see at chosen epochs.

May import: projection, scan, topk, model, images, zoo, rules, tape, results, guard, errors.
"""
