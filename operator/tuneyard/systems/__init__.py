"""The outside, one folder a system: each speaks to one kind of thing that Tuneyard did not write."""
