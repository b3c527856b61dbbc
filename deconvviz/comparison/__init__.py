"""Methods that explain one number of a network, side by side, and what random weights make of their maps.

May import `occlusion`, `projection`, `model`, `rules`, `tape`, `images`, `results`, `guard` and `errors`; captum is
imported when a method needs it.
"""
