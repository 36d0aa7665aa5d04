"""What a run is made of: one file for each option, by the groups and names of conf/."""
