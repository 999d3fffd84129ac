"""Policies kept outside the project, as a user would write them (named ``tests.plugins.<module>:<Class>``)."""
