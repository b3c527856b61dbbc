"""Activations carried back to pixels: `deconv`, `project`, and the loop they share.

May import: scan, topk, model, images, rules, tape, results, jobs, guard, errors.
"""
