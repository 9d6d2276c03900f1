"""Are the answers right, and is one model better than another? Questions, answers, metrics, comparison, report."""
