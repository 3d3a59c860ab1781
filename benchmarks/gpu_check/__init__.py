"""One command for the day a real GPU is there: see __main__.py, and "On a real GPU" in
benchmarks/README.md.
"""
