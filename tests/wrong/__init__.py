"""Matrix classes and mixers that are wrong in one way each. A law that they pass is no law (tests/test_laws_catch.py).

Nothing here is registered.
"""
