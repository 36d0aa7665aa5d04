"""The settings of a run: one file for each option, by the groups and names of conf/."""
