"""What runs in the environment of requirements/build.txt: a tool per kind of step, and the checks of what they make.

Rules:
- `python -m tuneyard.build.tools REQUEST REPORT`: reads a request (JSON), writes lines of JSON to REPORT;
- nothing here imports what Tuneyard's own environment has and this one lacks: the standard library, what is pure of
  Tuneyard, and the tools' libraries, each only in the module that uses it;
- nothing is asked over the network and no code of a model's repository is run.
"""
