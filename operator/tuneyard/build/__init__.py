"""The process in a build's pod: it fetches what a model is made from, makes it, checks it, and stores it.

It runs in Tuneyard's own environment. Each step's tool is a process of its own in another one (`tools/`), because the
libraries of the two do not agree, and so that a step's memory is free when the next begins.
"""
