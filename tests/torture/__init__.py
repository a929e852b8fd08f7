"""The torture: processes killed and stopped at random, and a judge of what they saw."""
