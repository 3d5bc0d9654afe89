"""Looking at somebody's scans before a teacher does: measuring, judging, describing them."""
