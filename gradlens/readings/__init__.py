"""What is read while training goes on, and what is made of it: estimators, the probe set, what was learned, alarms."""
