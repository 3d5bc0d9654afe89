"""Commands that look after a target store: info, verify, repair, convert, merge, show-targets."""
