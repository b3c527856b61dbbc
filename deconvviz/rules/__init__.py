"""Operation kind -> way back: what the deconvnet does with each operation, and what must be saved for that.

`table` is where a new operation goes. Knows nothing of layers, units or pictures. Imports `tape` and `errors`.
"""
