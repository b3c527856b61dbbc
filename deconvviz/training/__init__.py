"""`train`, exactly resumable and drawn afterwards, and the `Recorder` of what units see at chosen epochs.

May import: studies, projection, scan, topk, jobs, model, images, zoo, rules, tape, results, guard, errors.
"""
