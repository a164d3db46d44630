"""The models that the demo, the examples and the tests serve, made on this machine from packages.

Nothing here is part of the product that runs in a cluster. Bases are built once into the cache, adapters
live in `examples/adapters/`, broken adapters are derived from good ones on demand. Only training needs
torch; everything else needs numpy and nothing more, so that tests can use it for free.
"""
