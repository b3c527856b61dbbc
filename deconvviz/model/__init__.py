"""What the user's network is made of: its layers by number and name, the rule of each operation, its responses.

Imports `rules`, `images`, `tape`, `results`, `guard` and `errors`.
"""
