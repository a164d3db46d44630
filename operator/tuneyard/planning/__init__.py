"""Pure: observations in, plans out. The only place where Tuneyard decides anything."""
