"""Would this config run here: checks by group, before anything is downloaded or paid for."""
