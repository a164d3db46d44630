"""A pipeline that makes a better adapter of users' feedback: collect, select, train, evaluate, propose.

Each step reads files and writes files into the folder of one run, so it can be repeated, looked at, and left out.
"""
