"""One forward pass as a list of operations: what ran, what went in and came out, which pixels each position sees.

Knows nothing of rules, layers or pictures. Imports `errors` alone.
"""
