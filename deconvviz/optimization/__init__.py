"""Images made by optimization: what excites a unit, a class or a direction most, and what a layer still knows.

May import: topk, model, images, rules, tape, results, jobs, guard, checks, errors.
"""
